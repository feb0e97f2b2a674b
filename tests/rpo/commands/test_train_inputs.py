"""Claims about ``rpo train`` on invalid input: one line that names the place, no partial files."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tokenizers
from flax import nnx
from safetensors.numpy import load_file, save_file
from tokenizers import models, pre_tokenizers

import rpo.jobs.training
from llm.hf.io import CONFIG_NAME, export_model
from llm.hf.safetensors import SAFE_WEIGHTS_NAME
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from rpo.cli import main

SIZES: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
}
RUN = """
name: inputs
model: {path: model}
data: {train: rows.jsonl, tokenizer: bytes, max_length: 16}
objective: {method: rpo, beta: 0.5, eta: 0.05}
trainer: {max_steps: 2, save_steps: 1, per_device_train_batch_size: 2}
"""
GOOD = {"prompt": "q", "chosen": "yes", "rejected": "no"}
USER, REPLY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
TENSOR = "model.layers.0.self_attn.q_proj.weight"
HEAD, NORM = "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    with jax.numpy_dtype_promotion("strict"):
        export_model(
            Decoder(Architecture(**SIZES, num_attention_heads=2), rngs=nnx.Rngs(0)), folder
        )
    return folder


@pytest.fixture
def folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").mkdir()
    for path in model.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "rows.jsonl").write_text((json.dumps(GOOD) + "\n") * 4)
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def third_row(line: Any) -> Callable[[Path], None]:
    """Return a function that writes data with this third row."""

    def write(folder: Path) -> None:
        text = line if isinstance(line, str) else json.dumps(line)
        good = json.dumps(GOOD) + "\n"
        (folder / "rows.jsonl").write_text(good * 2 + text + "\n" + good)

    return write


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in GOOD.items() if key != name}


def all_rows(*rows: Any) -> Callable[[Path], None]:
    """Return a function that writes each row four times."""

    def write(folder: Path) -> None:
        text = "".join((json.dumps(row) + "\n") * 4 for row in rows)
        (folder / "rows.jsonl").write_text(text)

    return write


UNPAIRED = {"prompt": "q", "completion": "yes", "label": True}
KTO = ["--objective.method", "kto"]
RANKED = {"prompt": "q", "responses": ["yes", "no", "maybe"]}
RANKING = ["--objective.method", "plackett_luce"]
ROWS: list[tuple[Any, str]] = [
    *((without(name), f"rows.jsonl:3: field `{name}` is missing") for name in GOOD),
    ({**GOOD, "chosen": 3}, "rows.jsonl:3: field `chosen` must be a string or a list of messages"),
    ({**GOOD, "prompt": {"a": 1}}, "rows.jsonl:3: field `prompt` must be a string, a list"),
    ({**GOOD, "chosen": ["a"]}, "rows.jsonl:3: field `chosen[0]` must be an object with `role`"),
    ({**GOOD, "chosen": [{**REPLY, "role": "bot"}]}, "rows.jsonl:3: field `chosen[0].role` must"),
    ({**GOOD, "chosen": [{**REPLY, "content": 1}]}, "rows.jsonl:3: field `chosen[0].content`"),
    ({**GOOD, "ref_chosen_logps": -1.0}, "rows.jsonl:3: field `ref_rejected_logps` must be"),
    *(({**GOOD, name: ""}, f"rows.jsonl:3: field `{name}` has an empty") for name in GOOD),
    ({**GOOD, "rejected": " \n"}, "rows.jsonl:3: field `rejected` has an empty assistant message"),
    ({**GOOD, "rejected": "yes"}, "rows.jsonl:3: fields `chosen` and `rejected` are identical"),
    ({**GOOD, "prompt": [USER, USER]}, "rows.jsonl:3: field `prompt`: roles must alternate"),
    ({**GOOD, "prompt": [USER, REPLY]}, "rows.jsonl:3: field `prompt`: roles must alternate"),
    ({**GOOD, "chosen": [USER]}, "rows.jsonl:3: field `chosen` must be a message of the"),
    ('{"prompt": "q", ', "rows.jsonl:3: the line is not JSON"),
    ("[1]", "rows.jsonl:3: the line must be an object, got list"),
    ('{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "rows.jsonl:3: field `prompt` must"),
]


def truncated(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [json.dumps({**GOOD, "prompt": rng.bytes(99).hex()}) + "\n" for _ in range(50)]
    content = gzip.compress("".join(lines).encode())
    (folder / "rows.jsonl.gz").write_bytes(content[: len(content) // 2])


def with_tokenizer(template: str | None, n_tokens: int = 9) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        vocabulary = {f"w{index}": index for index in range(n_tokens)}
        vocabulary["<end>"] = n_tokens
        fast = tokenizers.Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="w0"))
        fast.pre_tokenizer = pre_tokenizers.Whitespace()
        fast.add_special_tokens(["<end>"])
        fast.save(str(folder / "model" / "tokenizer.json"))
        config = {"eos_token": "<end>", "unk_token": "w0", "chat_template": template}
        (folder / "model" / "tokenizer_config.json").write_text(json.dumps(config))

    return write


def with_tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tensors = load_file(folder / "model" / SAFE_WEIGHTS_NAME)
        change(tensors)
        save_file(tensors, folder / "model" / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})

    return write


def with_config(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "model" / CONFIG_NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return write


def with_nan(tensors: dict[str, np.ndarray]) -> None:
    tensors[TENSOR][3, 1] = np.nan


def cut_weights(folder: Path) -> None:
    path = folder / "model" / SAFE_WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-100])


TEMPLATE = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
)
MODEL_TOKENIZER = ["--data.tokenizer", "model"]
FILES: list[tuple[Callable[[Path], Any], list[str], str]] = [
    (lambda folder: (folder / "rows.jsonl").write_text(""), [], "rows.jsonl has no rows"),
    (lambda folder: (folder / "rows.jsonl").unlink(), [], "rows.jsonl does not exist"),
    (truncated, ["--data.train", "rows.jsonl.gz"], "the gzip file is broken"),
    (all_rows(UNPAIRED), [], "rows.jsonl:1: the row is unpaired (`completion` and `label`), which"),
    (third_row(UNPAIRED), KTO, "rows.jsonl:3: field `chosen` is missing: the row is unpaired"),
    (all_rows(UNPAIRED, GOOD), KTO, "rows.jsonl:5: field `chosen` must not be given: the rows"),
    (all_rows({**UNPAIRED, "label": 0.5}), KTO, "rows.jsonl:1: field `label` of an unpaired row"),
    (all_rows(UNPAIRED), [*KTO, "--data.eval_rows", "1"], "for evaluation must have two rows"),
    (
        all_rows(UNPAIRED),
        [*KTO, "--data.train", "[{path: rows.jsonl, rows: 3}]"],
        "`data.train` must have neither `weight` nor `rows` for unpaired rows",
    ),
    (
        all_rows(RANKED),
        [],
        "rows.jsonl:1: the row is ranked (`responses`), which `objective.method`",
    ),
    (third_row(RANKED), RANKING, "rows.jsonl:3: field `chosen` is missing: `responses` is a list"),
    (all_rows(RANKED, GOOD), RANKING, "rows.jsonl:5: field `chosen` must not be given: the rows"),
    (
        all_rows({**RANKED, "ranks": [1, 2, 2]}),
        RANKING,
        "rows.jsonl:1: field `ranks` must have different values, got 2 for `responses[1]`",
    ),
    (third_row({**GOOD, "weight": 2}), KTO, "rows.jsonl:3: the row must have no weight, soft"),
    (
        third_row({**GOOD, "label": 0.5}),
        ["--objective.method", "aot"],
        "rows.jsonl:3: the row must have no weight, soft label or votes for 'aot', which is a loss",
    ),
    (lambda folder: None, MODEL_TOKENIZER, "model/tokenizer.json is missing"),
    (
        with_tokenizer(None),
        MODEL_TOKENIZER,
        "model: `chat_template` is missing in tokenizer_config.json",
    ),
    (
        with_tokenizer(TEMPLATE, 300),
        MODEL_TOKENIZER,
        "model: the tokenizer has 301 tokens, but the model",
    ),
    (with_config(vocab_size=100), [], "lm_head.weight must have shape [100, 8], got [261, 8]"),
    (with_config(max_position_embeddings=8), [], "`data.max_length` must be at most 8"),
    (with_config(model_type="gpt2"), [], "model/config.json: `model_type` must be one of"),
    (with_config(hidden_act="tanh"), [], "model/config.json: `hidden_act`"),
    (
        lambda folder: (folder / "model" / CONFIG_NAME).write_text("{"),
        [],
        "config.json is not JSON",
    ),
    (
        lambda folder: None,
        ["--model.path", "no/such/model"],
        "no/such/model does not exist: give a model",
    ),
]
TENSORS: list[tuple[Callable[[Path], Any], list[str], str]] = [
    (with_tensors(lambda t: t.pop(TENSOR)), [], f"model: tensor {TENSOR} is missing (1 of 12"),
    (
        with_tensors(lambda t: t.update(extra=np.ones(2))),
        [],
        f"{SAFE_WEIGHTS_NAME}: tensor extra is unexpected",
    ),
    (
        with_tensors(lambda t: t.update({TENSOR: np.ones((8, 9), np.float32)})),
        [],
        f"{SAFE_WEIGHTS_NAME}: tensor {TENSOR} must have shape [8, 8], got [8, 9]",
    ),
    (
        with_tensors(with_nan),
        [],
        f"{SAFE_WEIGHTS_NAME}: tensor {TENSOR} holds NaN or infinite numbers",
    ),
    (cut_weights, [], f"model/{SAFE_WEIGHTS_NAME} is broken"),
    (with_config(vocab_size=300), [], "must have shape [300, 8], got [261, 8]"),
]


def assert_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Check that only the last line of stderr is an error; return the lines."""
    assert main(["train", "run.yaml", "--out", "out", *argv]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line for line in lines if line.startswith("rpo: error: ")] == lines[-1:]
    assert message in lines[-1]
    return lines


@pytest.mark.parametrize(
    ("spoil", "argv", "message"),
    [*((third_row(line), [], message) for line, message in ROWS), *FILES],
)
def test_raises_one_line_on_data_and_configurations_and_writes_nothing(
    spoil: Callable[[Path], Any],
    argv: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(folder)
    assert len(assert_refused(argv, message, capsys)) == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--objective.method", "simpo", "--objective.options", "{gama: 1.0}"],
            "`objective.options.gama`: loss 'simpo' has no option 'gama': did you mean 'gamma'?",
        ),
        (["--objective.method", "simp"], "`objective.method` must be one of 'sft', 'rpo', 'dpo'"),
        (
            ["--objective.preference", "[{loss: dpo}, {loss: hinge, tau: 1.0}]"],
            "`objective.preference[1].tau`: loss 'hinge' has no option 'tau': it has no options",
        ),
        (
            ["--objective.eta_schedule", "{kind: linear}"],
            "`end` must be given for the kind 'linear'",
        ),
    ],
)
def test_raises_one_line_on_losses_and_options_that_do_not_exist(
    argv: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(assert_refused(argv, message, capsys)) == 1
    assert not (folder / "out").exists()


def test_raises_one_line_on_a_step_of_one_unpaired_row(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_rows(UNPAIRED)(folder)
    argv = [*KTO, "--trainer.per_device_train_batch_size", "3"]
    assert_refused(argv, "must have two rows or more, got 4 rows in steps of 3", capsys)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("spoil", "argv", "message"), TENSORS)
def test_raises_one_line_on_weights_and_leaves_no_folder(
    spoil: Callable[[Path], Any],
    argv: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(folder)
    assert_refused(argv, message, capsys)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1e30, "step 1: not finite in `grad_norm` of the step on rows "),
        (1e38, "must be finite, got [-inf -inf]: look at that row, or compute with a wider dtype"),
    ],
)
def test_raises_one_line_where_weights_overflow_and_names_the_rows(
    factor: float, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tensors(lambda t: t.update({HEAD: t[HEAD] * 1e15, NORM: t[NORM] * factor}))(folder)
    assert_refused([], message, capsys)
    assert not list((folder / "out").glob("checkpoints/[0-9]*"))


def test_raises_one_line_at_a_step_that_is_not_finite_and_names_the_last_good_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    too_far = ["--optimizer.learning_rate", "1e30", "--optimizer.warmup_ratio", "0"]
    message = "step 2: not finite in rows"
    shown = assert_refused([*too_far, "--optimizer.max_grad_norm", "1e30"], message, capsys)[-1]
    assert shown.endswith("the last good checkpoint is step 1")
    steps = [path.name for path in (folder / "out" / "checkpoints").glob("[0-9]*")]
    assert steps == ["1"]
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]


def test_property_rows_are_skipped_and_counted_if_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third_row({**GOOD, "rejected": "yes"})(folder)
    assert main(["train", "run.yaml", "--dry-run", "--data.on_error", "skip"]) == 0
    shown = capsys.readouterr().err
    assert "rows_skipped: 1\n" in shown
    assert "3 pairs" in shown
    assert "\nrows: " not in shown


def test_raises_a_checkpoint_of_another_model_is_refused_and_all_stays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "run.yaml", "--out", "out"]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    export_model(
        Decoder(Architecture(**SIZES, num_attention_heads=4), rngs=nnx.Rngs(0)),
        folder / "other" / "model",
    )
    changes = {
        ("model.path", "other/model"): "another model (`architecture.",
        ("objective.eta", "0.07"): "another configuration (`objective.eta` was 0.05 and is 0.07)",
    }
    for (key, value), difference in changes.items():
        message = f"out/checkpoints/2: a checkpoint of {difference}"
        assert_refused(["--resume", f"--{key}", value], message, capsys)
        after = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
        assert after == before
    _refuses_a_run_whose_checkpoints_were_moved_away(folder, capsys)


def _refuses_a_run_whose_checkpoints_were_moved_away(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out" / "checkpoints").rename(folder / "elsewhere")
    metrics = folder / "out" / "metrics.jsonl"
    other = ["--objective.eta", "0.07"]
    gone = "the run has made 2 steps, but its checkpoints are gone: move them back to out/checkp"
    configuration = "another configuration (`objective.eta` was 0.05 and is 0.07)"
    lines = metrics.read_text().splitlines(keepends=True)
    longer = json.dumps({"step": 3}) + "\n"  # after the second checkpoint, whose save waits
    cases = [
        (lines, [], gone),  # finished
        (lines, other, gone),
        ([*lines[:2], longer], [], gone.replace("2 steps", "3 steps")),
        (lines[:1], other, configuration),  # stopped before its first checkpoint
    ]
    for content, overrides, message in cases:
        metrics.write_text("".join(content))
        assert_refused(["--resume", *overrides], message, capsys)
        assert metrics.read_text() == "".join(content)


def test_raises_a_run_goes_on_only_from_the_weights_that_it_began_with(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No reference looks at the weights, and those under adapters are in no checkpoint.
    kind = ["--objective.method", "sft", "--model.lora_r", "2"]
    assert main(["train", "run.yaml", "--out", "out", *kind]) == 0
    tensors = load_file(folder / "model" / SAFE_WEIGHTS_NAME)
    tensors[TENSOR].view(np.uint8)[0, 0] ^= 1
    save_file(tensors, folder / "model" / SAFE_WEIGHTS_NAME)
    message = "a checkpoint of another model (the frozen weights of `model.path` changed"
    assert_refused(["--resume", *kind], message, capsys)


def test_raises_for_adapters_and_references_that_do_not_fit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: dict[str, Any] = {**SIZES, "vocab_size": 300, "num_attention_heads": 4}
    wider = Architecture(**sizes)
    export_model(Decoder(wider, rngs=nnx.Rngs(0)), folder / "larger")
    adapter = folder / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (1, 9), "B": (8, 1)}
    tensors = {name.format(part): np.ones(shape) for part, shape in shapes.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    message = "q_proj.lora_A.weight must have shape [1, 8], got [1, 9]"
    assert_refused(["--model.adapter", "adapter"], message, capsys)
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    assert_refused(["--model.adapter", "adapter"], "adapter_config.json: `use_dora`", capsys)
    message = "`model.reference` larger: the reference must have the vocabulary of the policy, 261"
    assert_refused(["--model.reference", "larger"], message, capsys)


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_raises_one_line_on_a_full_disk_and_can_be_run_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[tuple[Any, str, list[str]]] = [  # in the order in which a run comes to them
        (Path, "mkdir", []),
        (Path, "write_bytes", []),  # the reference
        (rpo.jobs.training, "write_atomic", []),  # the configuration
        (os, "fsync", []),  # the metrics
        (ocp.CheckpointManager, "save", ["--resume"]),  # there are metrics of a step
    ]
    for owner, name, again in faults:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            assert_refused(again, "No space left on device", capsys)
    assert_refused([], "a run is there already: continue with --resume", capsys)
    assert main(["train", "run.yaml", "--out", "out", "--resume"]) == 0


def test_raises_one_line_on_a_disk_that_fills_up_and_goes_on_when_there_is_room(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage

    def filling(path: Path) -> Any:
        room = 0 if any(child.name == "1" for child in path.iterdir()) else usage(path).free
        return usage(path)._replace(free=room)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", filling)
        assert_refused([], "out/checkpoints/2: no space left for a checkpoint of", capsys)
    assert_refused([], "a run is there already: continue with --resume", capsys)
    assert main(["train", "run.yaml", "--out", "out", "--resume"]) == 0
    assert '"event": "finished"' in (folder / "out" / "metrics.jsonl").read_text()
