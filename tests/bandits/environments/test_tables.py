"""Bandits of tables: defaults, data, files and functions of the user's own, and messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandits.environments.designs import Design
from bandits.environments.registry import draw_environment, find_environment
from bandits.environments.table_files import read_tables
from bandits.environments.tables import draw_from_instances, instance_from_tables
from bandits.environments.user_environments import instances_from_function
from rpo_io.user_modules import add_module_folder
from rpo_theory.rewards import LinearBall, TabularBox

SIGMAS = 5.0
TRUTH = np.array([[1.0, 3.0, 2.0], [0.5, 0.0, -0.5]])
BEHAVIOR = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])


def test_closed_form_defaults_of_the_tables() -> None:
    bandit = instance_from_tables({"true_reward": TRUTH, "behavior_policy": BEHAVIOR})
    np.testing.assert_array_equal(bandit.true_reward, [[0.0, 2.0, 1.0], [1.0, 0.5, 0.0]])
    assert bandit.reward_class == TabularBox(np.array(2.0))
    np.testing.assert_allclose(bandit.pair_distribution.sum(axis=(1, 2)), 0.5)
    np.testing.assert_allclose(
        bandit.pair_distribution[0], 0.5 * np.outer(BEHAVIOR[0], BEHAVIOR[0])
    )
    np.testing.assert_allclose(bandit.problem.baseline_policy, BEHAVIOR)
    np.testing.assert_allclose(bandit.problem.reference_policy, np.full((2, 3), 1 / 3))
    np.testing.assert_array_equal(bandit.comparator, [[0, 1, 0], [1, 0, 0]])
    shifted = {"true_reward": TRUTH, "behavior_policy": BEHAVIOR, "data_contexts": [0.9, 0.1]}
    of_data = instance_from_tables(shifted | {"context_weights": [0.25, 0.75]})
    np.testing.assert_allclose(of_data.pair_distribution.sum(axis=(1, 2)), [0.9, 0.1])
    np.testing.assert_allclose(of_data.problem.context_weights, [0.25, 0.75])


def test_closed_form_a_comparator_lies_in_the_support_of_the_reference() -> None:
    reference = [[0.5, 0.0, 0.5], [0.2, 0.4, 0.4]]
    tables = {"true_reward": TRUTH, "behavior_policy": BEHAVIOR, "reference_policy": reference}
    np.testing.assert_array_equal(instance_from_tables(tables).comparator[0], [0, 0, 1])


def test_closed_form_a_linear_class_has_the_norm_of_the_parameter_as_radius() -> None:
    features = np.random.default_rng(0).normal(size=(2, 3, 2))
    parameter = np.array([0.6, -0.8])
    tables = {
        "true_reward": features @ parameter,
        "features": features,
        "pair_distribution": np.ones((2, 3, 3)),
    }
    bandit = instance_from_tables(tables)
    assert isinstance(bandit.reward_class, LinearBall)
    assert float(np.asarray(bandit.reward_class.radius)) == pytest.approx(1.0)
    np.testing.assert_array_equal(bandit.true_reward, features @ parameter)


def test_property_data_follow_the_pairs_and_the_labels_the_rewards() -> None:
    single = instance_from_tables({"true_reward": TRUTH, "behavior_policy": BEHAVIOR})
    batch = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], 2, axis=0), single)
    n = 1_000_000
    drawn = draw_from_instances(batch, n, np.array([3, 4]))
    wins = np.asarray(drawn.problem.wins)
    assert wins.sum(axis=(1, 2, 3)).tolist() == [n, n]
    share = wins[:, 0, 1, 2] / (wins[:, 0, 1, 2] + wins[:, 0, 2, 1])
    assert np.abs(share - 1 / (1 + np.exp(-1.0))).max() < SIGMAS * 0.5 / np.sqrt(0.15 * n / 2)
    np.testing.assert_array_equal(drawn.problem.beta, [1e-3, 1e-3])
    assert not np.array_equal(wins[0], wins[1])
    later = draw_from_instances(jax.tree.map(lambda leaf: leaf[1:], batch), n, np.array([4]))
    np.testing.assert_array_equal(later.problem.wins[0], wins[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"true_reward": None}, "`true_reward` is missing"),
        ({"reward": TRUTH}, "`reward` is unknown: the tables are true_reward"),
        ({"pair_distribution": np.ones((2, 3, 3))}, "`pair_distribution` or `behavior_policy` is"),
        ({"behavior_policy": None}, "`pair_distribution` or `behavior_policy` is needed"),
        ({"behavior_policy": BEHAVIOR[:1]}, "`behavior_policy` must have shape (2, 3), got (1, 3)"),
        ({"behavior_policy": BEHAVIOR * 2}, "`behavior_policy` must have rows that are distrib"),
        ({"behavior_policy": BEHAVIOR - 0.1}, "`behavior_policy` must have rows that are distribu"),
        ({"true_reward": TRUTH * np.nan}, "`true_reward` must hold finite numbers"),
        ({"true_reward": "high"}, "`true_reward` must be an array of numbers"),
        ({"true_reward": TRUTH[0]}, "`true_reward` must have shape (x, a), got (3,)"),
        ({"context_weights": [1.0]}, "`context_weights` must have shape (2), got (1,)"),
        ({"reward_max": 0.0}, "`reward_max` must be greater than 0, got 0"),
        ({"radius": 1.0}, "`radius` is for a linear class, which needs `features`"),
        (
            {"true_reward": (TRUTH - 1.0) * 0.89e308},
            "`true_reward` must have differences below 1e308",
        ),
        ({"features": np.ones((2, 3, 1)), "reward_max": 1.0}, "`reward_max` is for the tabular"),
        (
            {"behavior_policy": None, "pair_distribution": -np.ones((2, 3, 3))},
            "`pair_distribution` must have entries of at least 0",
        ),
        (
            {
                "behavior_policy": None,
                "pair_distribution": np.ones((2, 3, 3)),
                "data_contexts": [0.5, 0.5],
            },
            "`data_contexts` goes with `behavior_policy`",
        ),
    ],
)
def test_raises_with_the_name_of_the_table(changed: dict[str, Any], message: str) -> None:
    tables = {"true_reward": TRUTH, "behavior_policy": BEHAVIOR} | changed
    with pytest.raises(ValueError) as raised:
        instance_from_tables({name: table for name, table in tables.items() if table is not None})
    assert str(raised.value).startswith(message)


COLUMNS = {
    "context": ["q", "p", "q", "p"],
    "action": ["a", "b", "b", "a"],
    "true_reward": [1.0, 2.0, 3.0, 4.0],
    "behavior_policy": [0.1, 0.4, 0.9, 0.6],
    "context_weight": [0.3, 0.7, 0.3, 0.7],
}


def test_roundtrip_files_of_bandits(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", true_reward=TRUTH, behavior_policy=BEHAVIOR)
    pq.write_table(pa.table(COLUMNS), tmp_path / "b.parquet")
    archive, table = (read_tables(tmp_path / f"b.{end}") for end in ("npz", "parquet"))
    np.testing.assert_array_equal(archive["true_reward"], TRUTH)
    np.testing.assert_array_equal(table["true_reward"], [[4.0, 2.0], [1.0, 3.0]])
    np.testing.assert_array_equal(table["behavior_policy"], [[0.6, 0.4], [0.1, 0.9]])
    np.testing.assert_array_equal(table["context_weights"], [0.7, 0.3])
    name = f"file:{tmp_path / 'b.parquet'}"
    drawn = draw_environment(name, 50, np.arange(2), design=Design(label_noise=0.1))
    np.testing.assert_array_equal(drawn.true_reward[1], [[2.0, 0.0], [0.0, 2.0]])
    assert find_environment(name).files == (tmp_path / "b.parquet",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"action": None}, "the column `action` is missing"),
        ({"bonus": [1, 2, 3, 4]}, "unknown column `bonus`"),
        ({"action": ["a", "b", "a", "a"]}, "must have one row for every context and action, got 4"),
        ({"true_reward": [1.0, None, 3.0, 4.0]}, "the column `true_reward` has empty cells"),
        ({"context_weight": [0.3, 0.7, 0.4, 0.7]}, "the column `context_weight` must not vary"),
        ({"behavior_policy": None}, "`pair_distribution` or `behavior_policy` is needed"),
    ],
)
def test_raises_with_the_file_and_the_column(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    merged = {name: column for name, column in (COLUMNS | columns).items() if column is not None}
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table(merged), path)
    with pytest.raises(ValueError) as raised:
        draw_environment(f"file:{path}", 9, np.arange(1), design=Design())
    assert str(raised.value).startswith(f"{path}: {message}")


def test_raises_on_a_file_of_another_kind(tmp_path: Path) -> None:
    for name, message in (
        ("b.csv", "must be a NumPy archive"),
        ("b.npz", "is not a NumPy archive"),
        ("b.parquet", "is not a Parquet file"),
    ):
        (tmp_path / name).write_text("true_reward")
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            read_tables(tmp_path / name)


MODULE = """
import jax
import numpy as np


def near_tie(seed, comparisons, key):
    reward = [[0.0, comparisons ** -0.5, float(jax.random.uniform(key))]]
    return {"true_reward": reward, "behavior_policy": [[0.5, 0.4, 0.1]], "reward_max": 2.0}


def growing(seed):
    n = 2 + seed
    return {"true_reward": np.zeros((1, n)), "pair_distribution": np.ones((1, n, n))}


def raising():
    raise RuntimeError("no data")


def exiting(seed):
    if seed == 1:
        raise SystemExit(4)
    return {"true_reward": [[0.0, 1.0]], "behavior_policy": [[0.5, 0.5]]}


def nothing():
    return None


def curious(color):
    return None


number = 3
"""


def test_property_a_function_is_an_environment_of_its_seeds(tmp_path: Path) -> None:
    (tmp_path / "worlds_of_a_user.py").write_text(MODULE)
    add_module_folder(tmp_path)
    name = "worlds_of_a_user:near_tie"
    drawn = draw_environment(name, 100, np.array([7, 8]), design=Design())
    truth = np.asarray(drawn.true_reward)
    assert truth[0, 0, 1] - truth[0, 0, 0] == pytest.approx(0.1)
    assert truth[0, 0, 2] != truth[1, 0, 2]
    later = draw_environment(name, 100, np.array([8]), design=Design())
    for leaf, row in zip(*map(jax.tree.leaves, (drawn, later)), strict=True):
        np.testing.assert_array_equal(leaf[1:], row)
    assert find_environment(name).source is not None
    for function, message in (
        ("growing", "environment growing must return tables of the same shapes for every seed"),
        ("raising", r"environment raising \(seed 0\): RuntimeError: no data"),
        ("exiting", r"environment exiting \(seed 1\): SystemExit: 4"),
        (
            "nothing",
            r"environment nothing \(seed 0\) must return a mapping of tables, got NoneType",
        ),
        ("curious", "environment curious has the parameter `color`: it takes parameters by name"),
        ("number", "`environments` worlds_of_a_user:number is not a function"),
        ("missing", "`environments` worlds_of_a_user:missing: the module worlds_of_a_user has no"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_environment(f"worlds_of_a_user:{function}", 9, np.arange(2), design=Design())


def test_property_a_function_is_called_once_for_every_seed() -> None:
    seen = []

    def even(seed: int) -> dict[str, Any]:
        seen.append(seed)
        return {"true_reward": [[0.0, 1.0]], "behavior_policy": [[0.5, 0.5]]}

    assert instances_from_function(even, 9, np.array([4, 2])).true_reward.shape == (2, 1, 2)
    assert seen == [4, 2]
