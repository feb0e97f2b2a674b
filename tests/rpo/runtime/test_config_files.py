"""Claims about configurations: every mistake is one line that names file and key."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bandits.study.config import StudyConfig
from llm.config import TrainConfig
from rpo.jobs.study_kinds import config_class
from rpo.runtime.config_files import read_config, read_kind, to_yaml

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
GOOD = "name: a\nmethods: [{method: rpo}]\ncomparisons: [10]\nseeds: 3\n"


def read(folder: Path, text: str, *overrides: str) -> StudyConfig:
    path = folder / "study.yaml"
    path.write_text(text)
    return read_config(path, StudyConfig, list(overrides))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("study_*.yaml")), ids=lambda path: path.stem)
def test_roundtrip_every_study_of_the_project_is_read_in_both_sizes(
    path: Path, tmp_path: Path
) -> None:
    cls: Any = config_class(read_kind(path))
    study = read_config(path, cls)
    assert study.name == path.stem.removeprefix("study_")
    if hasattr(study, "quick_version"):
        study.quick_version()
    again = tmp_path / "again.yaml"
    again.write_bytes(to_yaml(study))
    assert read_config(again, cls) == study


TRAINING = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("study_*.yaml")))


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_roundtrip_every_training_run_of_the_project_is_read(path: Path, tmp_path: Path) -> None:
    config = read_config(path, TrainConfig)
    assert config.name == path.stem
    again = tmp_path / "again.yaml"
    again.write_bytes(to_yaml(config))
    assert read_config(again, TrainConfig) == config


@pytest.mark.parametrize("run", ["smollm2_hh", "mistral_7b", "gemma_7b"])
def test_property_the_runs_of_a_pair_differ_only_in_their_method(run: str) -> None:
    rpo_run, dpo_run = (
        read_config(CONFIGS / f"{method}_{run}.yaml", TrainConfig) for method in ("rpo", "dpo")
    )
    assert rpo_run.objective.method == "rpo"
    as_dpo = replace(rpo_run.objective, method="dpo")
    assert replace(rpo_run, name=dpo_run.name, objective=as_dpo) == dpo_run


@pytest.mark.parametrize(("run", "beta", "epochs"), [("mistral", 0.01, 1.0), ("gemma", 0.05, 2.0)])
def test_golden_the_recipes_are_the_papers(run: str, beta: float, epochs: float) -> None:
    config = read_config(CONFIGS / f"rpo_{run}_7b.yaml", TrainConfig)
    trainer, data = config.trainer, config.data
    assert (config.objective.beta, config.objective.eta) == (beta, 0.005)
    assert config.objective.sft_reduction == "sum"
    assert (config.optimizer.learning_rate, config.optimizer.warmup_ratio) == (5e-7, 0.1)
    assert (trainer.global_batch_size, trainer.per_device_train_batch_size) == (128, 4)
    assert (trainer.num_train_epochs, trainer.seed) == (epochs, 42)
    assert (data.max_length, data.max_prompt_length) == (1024, 512)


def test_closed_form_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    study = read(
        tmp_path, GOOD, "--seeds", "7", "--design.target_coverage=3.0", "--eta", "[0.1, theorem]"
    )
    assert (study.seeds, study.design, study.eta) == (7, {"target_coverage": 3.0}, [0.1, "theorem"])


@pytest.mark.parametrize(
    ("cls", "text", "expected"),
    [
        (TrainConfig, GOOD, "unknown key `methods`, which files of `rpo study` have"),
        (StudyConfig, "name: a\nmodel: {path: m}\n", "unknown key `model`, which files of `rpo t"),
        (TrainConfig, '{"comparisons": [], "reward_class": {}}', "`reward_class`, which files of"),
    ],
)
def test_raises_the_file_of_another_command_names_that_command(
    cls: type, text: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_config(path, cls)
    assert expected in str(caught.value)
    assert str(caught.value).endswith(f" {path}`")


def test_property_a_mapping_replaces_a_dictionary_and_keeps_the_other_keys_of_a_section(
    tmp_path: Path,
) -> None:
    base = GOOD + "design: {target_coverage: 2.0, actions: 5}\nquick: {seeds: 2}\n"
    assert read(tmp_path, base, "--design", "{}").design == {}
    assert read(tmp_path, base, "--design", "{actions: 4}").design == {"actions": 4}
    one = read(tmp_path, base, "--design.actions", "4")
    assert one.design == {"target_coverage": 2.0, "actions": 4}
    quick = read(tmp_path, base, "--quick", "{comparisons: [50]}").quick
    assert (quick.seeds, quick.comparisons) == (2, [50])


def test_closed_form_a_number_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    assert math.isclose(read(tmp_path, GOOD + "delta: 5e-7\n").delta, 5e-7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "sedes: 3\n", "unknown key `sedes`: did you mean `seeds`?"),
        (GOOD + "eta: [x]\n", "`eta[0]` must be a number, or one of 'theorem', 'tight'"),
        (GOOD + "eta: 0.1\n", "got 0.1: write [0.1]"),
        (GOOD + "seeds: 4\n", "line 5: key `seeds` is given twice"),
        (GOOD + "quick: {seeds: 1, seeds: 2}\n", "line 5: key `seeds` is given twice"),
        (GOOD + "delta: !!python/object/apply:os.system ['true']\n", "line 5: could not determine"),
        (GOOD + "eta: &a [0.1]\nbeta: *a\n", "line 6: aliases"),
        (GOOD + "1: 2\n", "line 5: key 1 must be a string"),
        (GOOD + "design: {covrage: 2}\n", "`design.covrage` is unknown"),
        (GOOD.replace("rpo", "ppo"), "`method` must be one of rpo"),
        (
            GOOD.replace("method: rpo", "metod: rpo"),
            "unknown key `metod` in `methods[0]`: did you mean `methods[0].method`?",
        ),
        (GOOD.replace("seeds: 3", "seeds: three"), "`seeds` must be a whole number, got 'three'"),
        (GOOD.replace("seeds: 3\n", ""), "`seeds` is missing"),
        ("- a\n", "must be a mapping of keys to values, got a list"),
        ("", "must be a mapping of keys to values, got an empty file"),
        ("name: [\n", "line 2"),
        ("a" * 100_001, "at most 100,000 bytes"),
        ("a: " + "[" * 5000, "study.yaml: "),
    ],
)
def test_raises_mistakes_of_a_file_name_it_and_the_key(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert expected in message
    assert message.startswith(str(tmp_path / "study.yaml"))
    assert "\n" not in message


@pytest.mark.parametrize("override", [("--sedes", "3"), ("--seeds", "x"), ("--seeds",), ("stray",)])
def test_raises_mistakes_of_an_override_are_named(tmp_path: Path, override: tuple[str]) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, GOOD, *override)
    assert override[0].removeprefix("--") in str(caught.value)


RUN = "name: a\nmodel: {path: m}\ndata: {train: d.jsonl}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--label_noise 0.1", "unknown key `label_noise`: did you mean `design.label_noise`?"),
        ("--design.label-noise 0.1", "did you mean `design.label_noise`?"),
        ("--seed 3", "argument --seed: unknown key `seed`: did you mean `seeds`?"),
        ("--seeds 014", "must be a whole number, got '014': write the number without leading"),
        ("--seeds 1_000", "argument --seeds: must be a whole number, got '1_000': write 1000"),
        ("--seeds 1:30", "must be a whole number, got '1:30'"),
        ("--seeds 1e3", "must be a whole number, got 1000.0: write 1000"),
        ("--seeds true", "must be a whole number, got true"),
        ("--seeds nan", "must be a whole number, got 'nan'"),
        ("--seeds .nan", "must be a whole number, got nan"),
        (f"--seeds {10**300}", "must be a whole number below 2^63, got a number of 301 digits"),
        (f"--comparisons [{2**63}]", "`comparisons[0]` must be a whole number below 2^63"),
        (f"--design.actions {2**63}", "must be a whole number below 2^63"),
        (f"--delta {10**399}", "argument --delta: must be a finite number, got inf"),
        ("--delta 1e400", "must be a finite number"),
        ("--delta .inf", "must be a finite number"),
        ("--eta 0.1", "argument --eta: must be a list of numbers, or one of 'theorem', 'tight'"),
        ("--seeds 3 --seeds=3", "argument --seeds: is given twice"),
        ("--seeds", "argument --seeds: a value must follow"),
        ("--name.x 3", "`name` is text"),
        ("--quick 3", "must be a mapping of keys to values, got 3"),
        ("stray", "unrecognized argument 'stray'"),
        ("-x", "unrecognized argument '-x'"),
    ],
)
def test_raises_an_override_says_what_to_type(arguments: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, GOOD, *arguments.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--trainer.max-steps 3", "did you mean `trainer.max_steps`?"),
        ("--max_steps 3", "did you mean `trainer.max_steps`?"),
        ("--trainer.dataloader_drop_last yes", "must be true or false, got 'yes': write true"),
        ("--trainer.report_to wandb", "got 'wandb': write ['wandb']"),
        ("--model.dtype float23", "must be one of 'float32', 'bfloat16', 'float64'"),
        ("--model.path ~/model", "is not expanded, got '~/model'"),
        ("--data.train ${HOME}/rows.jsonl", "write the path instead of ${HOME}"),
        ("--data.train $DATA/rows.jsonl", "write the path instead of $DATA"),
    ],
)
def test_raises_an_override_of_a_run_says_what_to_type(
    arguments: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    with pytest.raises(ValueError) as caught:
        read_config(tmp_path / "run.yaml", TrainConfig, arguments.split())
    assert message in str(caught.value)


def test_property_where_text_is_wanted_a_word_stays_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    arguments = ["--name", "014", "--data.train", "2024", "--data.eval=yes", "--model.path", "a: b"]
    config = read_config(tmp_path / "run.yaml", TrainConfig, arguments)
    assert (config.name, config.data.train, config.data.eval) == ("014", "2024", "yes")
    assert config.model.path == "a: b"
    again = tmp_path / "again.yaml"
    again.write_bytes(to_yaml(config))
    assert read_config(again, TrainConfig) == config


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key=st.sampled_from(["name", "methods", "comparisons", "seeds", "eta", "design", "quick"]),
    value=PLAIN,
)
def test_property_any_value_of_any_key_is_accepted_or_refused_with_a_message(
    tmp_path: Path, key: str, value: Any
) -> None:
    import yaml

    document = {**yaml.safe_load(GOOD), key: value}
    path = tmp_path / "study.yaml"
    path.write_bytes(yaml.safe_dump(document).encode())
    try:
        read_config(path, StudyConfig)
    except ValueError as error:
        message = str(error)
    else:
        return
    assert message.startswith(str(path))
    assert "\n" not in message
