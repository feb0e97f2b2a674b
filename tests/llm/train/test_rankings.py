"""Claims about runs on ranked rows: the Plackett-Luce loss, the layouts, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.data.loader import BatchSampler
from llm.data.packing import PackingMode
from llm.data.preferences import PairTokens, PreferenceRow
from llm.evaluation.metrics import compute_metric_sums, finalize_metrics
from llm.evaluation.pair_losses import ordered_share, rejected_values
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.experts import response_counts
from llm.models.logprobs import response_log_probs
from llm.train.row_kinds import RowKinds
from llm.types import Batch, Bounds, Rows
from tests.llm.train.tiny_runs import TINY, train_to_end

BETA, ETA = 0.4, 0.3
RANKING = ObjectiveConfig(method="plackett_luce", beta=BETA)
RPO = ObjectiveConfig(preference="plackett_luce", beta=BETA, eta=ETA)
COUNTS = (2, 4, 3, 0)


def batch_of(counts: tuple[int, ...], weights: np.ndarray | None = None) -> Batch:
    """Return rows of the given numbers of scored responses; 0 for an absent row."""
    ranked = np.arange(max(counts)) < np.array(counts)[:, None]
    nothing: Any = None  # the tokens have been scored already
    row_ids = np.where(ranked[:, 0], np.arange(len(counts)), -1)
    batch = Batch(nothing, nothing, 2 * ranked, ranked[:, 0], row_ids, ranked=ranked)
    return batch._replace(weights=weights)


def nll(scores: np.ndarray) -> float:
    """Return the loss of one ranking, place by place from the definition."""
    return sum(
        math.log(sum(math.exp(s) for s in scores[k:])) - scores[k] for k in range(len(scores))
    )


def measured(
    config: ObjectiveConfig, policy: Any, reference: Any, batch: Batch
) -> dict[str, float]:
    sums = compute_metric_sums(config, policy, reference, batch)
    return {name: float(value) for name, value in finalize_metrics(config, sums).items()}


def test_closed_form_loss_and_metrics_of_ranked_rows_in_numpy() -> None:
    rng = np.random.default_rng(1)
    policy, reference = rng.normal(-9.0, 2.0, (2, 4, 4))
    weights = np.array([1.0, 3.0, 0.5, 7.0])
    batch = batch_of(COUNTS, weights)
    policy[~np.asarray(batch.ranked)] = np.nan  # never read
    share = weights[:3] / weights[:3].sum()
    scores = [BETA * (policy - reference)[row, :count] for row, count in enumerate(COUNTS[:3])]
    with jax.enable_x64(True):
        means = measured(RPO, policy, reference, batch)
        loss = np.array([nll(each) for each in scores])
        best = np.array([each[0] for each in scores])
        assert means["loss/plackett_luce"] == pytest.approx(share @ loss, rel=1e-13)
        assert means["loss/sft"] == pytest.approx(-share @ policy[:3, 0], rel=1e-13)
        assert means["loss"] == pytest.approx(
            share @ (loss - ETA * BETA * policy[:3, 0]), rel=1e-13
        )
        wanted = {
            "rewards/chosen": best,
            "rewards/rejected": [each[1:].mean() for each in scores],
            "rewards/accuracies": [
                np.mean([a > b for i, a in enumerate(each) for b in each[i + 1 :]])
                for each in scores
            ],
            "logps/rejected": [policy[i, 1:k].mean() for i, k in enumerate(COUNTS[:3])],
            "theory/adversarial_value": loss - ETA * best,
        }
        for name, values in wanted.items():
            assert means[name] == pytest.approx(share @ np.array(values), rel=1e-13), name
        values = jnp.asarray(reference)
        assert rejected_values(values, batch)[1] == pytest.approx(reference[1, 1:].mean())
        assert ordered_share(values, batch)[0] == float(reference[0, 0] > reference[0, 1])
        at_reference = measured(RANKING, reference, reference, batch_of(COUNTS))["loss"]
        assert at_reference == pytest.approx(
            np.mean([math.log(math.factorial(count)) for count in COUNTS[:3]]), rel=1e-14
        )


def test_gradient_of_ranked_rows_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(2)
    policy, reference, direction = rng.normal(-9.0, 2.0, (3, 4, 4))
    batch, step = batch_of(COUNTS), 1e-5

    def loss(log_probs: Any) -> jax.Array:
        return finalize_metrics(RPO, compute_metric_sums(RPO, log_probs, reference, batch))["loss"]

    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(loss)(jnp.asarray(policy)))
        assert not gradient[~np.asarray(batch.ranked)].any()
        ends = [float(loss(policy + sign * step * direction)) for sign in (1, -1)]
        assert (gradient * direction).sum() == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), rel=1e-8
        )


def test_parity_rankings_of_two_responses_have_the_loss_and_metrics_of_dpo() -> None:
    rng = np.random.default_rng(3)
    policy, reference = rng.normal(-9.0, 2.0, (2, 3, 2))
    ranked, dpo = batch_of((2, 2, 2)), ObjectiveConfig(method="dpo", beta=BETA)
    with jax.enable_x64(True):
        wanted = measured(dpo, policy, reference, ranked._replace(ranked=None))
        for batch in (ranked, ranked._replace(ranked=None)):
            means = measured(RANKING, policy, reference, batch)
            assert means.pop("loss/plackett_luce") == wanted["loss/dpo"]
            assert means == {name: wanted[name] for name in means}
    with pytest.raises(ValueError, match=r"must be 'plackett_luce' for ranked rows, got 'dpo'$"):
        measured(dpo, policy, reference, ranked)


def draw_rows() -> list[PairTokens]:
    rng = np.random.default_rng(0)
    rows = []
    for row in range(4):
        prompt, first, second, *others = (
            tuple(rng.integers(0, 32, rng.integers(2, 6)).tolist()) for _ in range(3 + row)
        )
        rows.append(PairTokens(prompt, first, second, None, row, others=tuple(others)))
    return rows


def test_parity_packed_rankings_have_the_log_probabilities_of_each_response_by_itself() -> None:
    rows = draw_rows()
    with jax.enable_x64(True):
        architecture = Architecture(
            vocab_size=32,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        model = Decoder(architecture, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)

        def packed(pairs: list[PairTokens], layout: PackingMode) -> np.ndarray:
            stacked = BatchSampler(pairs, layout, len(pairs), seed=None).batch(0)
            batch = jax.tree.map(lambda leaf: leaf[0], stacked)
            return np.asarray(response_log_probs(model, batch))

        shared, separate = packed(rows, "shared"), packed(rows, "separate")
        # One sequence a row: the other response of each pair is in a row of its own.
        singles = [
            PairTokens(row.prompt, response, response, None, 0)
            for row in rows
            for response in row.responses
        ]
        dense = packed(singles, "separate")[:, 0]
    present = np.arange(5) < np.array([[2], [3], [4], [5]])
    assert shared[present] == pytest.approx(dense, rel=1e-12)
    assert separate[present] == pytest.approx(dense, rel=1e-12)
    assert not shared[~present].any()
    assert not separate[~present].any()


def test_closed_form_a_prompt_counts_for_each_of_its_ranked_responses() -> None:
    branches, segments = np.array([[0, 1, 2, 3, 4, 0, 1, 2]]), np.array([[1] * 5 + [2] * 3])
    rows = Rows(branches, branches, segments, branches, Bounds(roles=4))
    assert response_counts(rows).tolist() == [[4, 1, 1, 1, 1, 2, 1, 1]]


def test_raises_for_ranked_rows_under_another_objective() -> None:
    pair = PreferenceRow((), (), (), None, 0, "rows.jsonl:3")
    ranked = pair._replace(ranking=(0, 1))
    for method in ("dpo", "rpo", "sft", "kto", "aot", "simpo"):
        with pytest.raises(ValueError, match=rf"^rows\.jsonl:3: .* `objective\.method` '{method}'"):
            RowKinds(ObjectiveConfig(method=method)).check(ranked)
    mixed = ObjectiveConfig(preference=[{"loss": "plackett_luce"}, {"loss": "hinge"}])
    with pytest.raises(ValueError, match=r"with `objective\.preference` 'plackett_luce' and 'hin"):
        RowKinds(mixed).check(ranked)
    for objective in (RANKING, RPO):
        for first, second, kinds in ((pair, ranked, "is ranked"), (ranked, pair, "is a pair")):
            rules = RowKinds(objective)
            rules.check(first)
            with pytest.raises(ValueError, match=rf"^rows\.jsonl:3: the row {kinds}, but the"):
                rules.check(second)


def write_rows(path: Path, n: int = 28) -> str:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for row in range(n):
            count = int(rng.integers(2, 6))
            replies = rng.choice(["yes", "no", "maybe", "never", "now"], count, replace=False)
            fields = {"prompt": f"q{row}", "responses": replies.tolist()}
            fields["scores"] = rng.permutation(count).tolist()
            file.write(json.dumps(fields) + "\n")
    return str(path)


def train(
    folder: Path,
    objective: ObjectiveConfig = RPO,
    *,
    layout: PackingMode = "shared",
    steps: int = 8,
    resume: bool = False,
    **trainer: Any,
) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    train_file = write_rows(folder / "rows.jsonl")
    config = TrainConfig(
        name="ranked",
        model=ModelConfig(architecture=TINY, seed=3, dtype="float64", param_dtype="float64"),
        data=DataConfig(train=train_file, eval_rows=4, max_length=32, layout=layout),
        objective=objective,
        optimizer=OptimizerConfig(learning_rate=3e-3, lr_scheduler_type="constant"),
        trainer=TrainerConfig(max_steps=steps, eval_steps=4, **trainer),
    )
    return train_to_end(config, folder, resume=resume)


def agree(first: list[dict[str, Any]], second: list[dict[str, Any]], rel: float = 1e-9) -> None:
    for one, other in zip(first, second, strict=True):
        shared = {
            name
            for name in one.keys() & other.keys()
            if isinstance(one[name], int | float) and not name.startswith("perf/")
        }
        assert "step" in shared
        if one["step"] == 1:  # ties, up to rounding
            shared.discard("rewards/accuracies")
        for name in shared:
            assert one[name] == pytest.approx(other[name], rel=rel, abs=1e-12), name


@pytest.mark.slow
def test_property_a_run_on_rankings_does_not_depend_on_microbatches_layout_or_a_stop(
    tmp_path: Path,
) -> None:
    one = train(tmp_path / "one", per_device_train_batch_size=8)
    losses = [line["loss"] for line in one if "loss" in line]
    assert losses[-1] < losses[0]
    four = train(tmp_path / "four", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    agree(one, four)
    shared, separate = (  # a step has all rows, because layouts balance steps in different ways
        train(tmp_path / layout, layout=layout, steps=4, per_device_train_batch_size=24)
        for layout in ("shared", "separate")
    )
    # A prompt counts once in one layout, and once for each response in the other.
    agree([{**line, "num_tokens": None} for line in shared], separate)
    train(tmp_path / "cut", steps=4, per_device_train_batch_size=8)
    again = train(tmp_path / "cut", resume=True, per_device_train_batch_size=8)
    assert [line["loss"] for line in again if "loss" in line] == losses
