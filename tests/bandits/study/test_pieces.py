"""Claims about pieces: they hold the draws of their parts once, and fits have the same bits."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from bandits.methods import METHODS
from bandits.study.config import StudyConfig
from bandits.study.continuation import fits_per_draw
from bandits.study.parts import draw_part, plan_parts
from bandits.study.pieces import PiecePlan, join_pieces, join_timings, pieces_per_part
from bandits.study.run import run_part


def study(*methods: str, seeds: int = 5, actions: int = 3) -> StudyConfig:
    design = {"actions": actions, "contexts": 2, "reward_max": 2.0}
    return StudyConfig(
        name="a", methods=list(methods), comparisons=[20, 40], seeds=seeds, design=design
    )


@pytest.mark.parametrize("n_jobs", [1, 2, 3, 4, 7, 10, 11])
@pytest.mark.parametrize("part_size", [3, 20])
def test_property_pieces_hold_every_draw_of_their_part_once(
    n_jobs: int, part_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", part_size)
    parts = plan_parts(study("behavior_cloning"))
    plan = PiecePlan(parts, n_jobs)
    assert len(plan) == len(parts) * plan.per_part
    is_single_draw = parts[len(parts) - 1].n_draws == 1
    assert (plan.per_part == 1) == (len(parts) >= n_jobs or is_single_draw)
    for number, part in enumerate(parts):
        pieces = [plan[piece] for piece in plan.pieces_of(number)]
        assert [piece.number for piece in pieces] == list(plan.pieces_of(number))
        assert all(piece.n_draws > 0 for piece in pieces)
        assert len({len(piece.seeds) for piece in pieces}) == 1
        for name in ("seeds", "scenario_index"):
            joined = [k for piece in pieces for k in getattr(piece, name)[: piece.n_draws]]
            assert joined == list(getattr(part, name)[: part.n_draws])
    # No job has more draws than it must have, up to one draw of each of its pieces.
    shares = [plan[job::n_jobs] for job in range(n_jobs)]
    most = max(sum(piece.n_draws for piece in share) for share in shares)
    if len(parts) == 1:
        assert most == -(-10 // n_jobs)
        assert [len(share) > 0 for share in shares].count(True) == min(n_jobs, 10)


def check_bits(config: StudyConfig, n_jobs: int) -> None:
    """Check that the joined records of pieces have the bytes of those of the part."""
    (part,) = plan_parts(config)
    plan = PiecePlan(plan_parts(config), n_jobs)
    expected, timings = run_part(config, part, draw_part(part))
    results = [run_part(config, piece, draw_part(piece)) for piece in plan]
    joined = join_pieces([table for table, _ in results], fits_per_draw(config))
    assert serialized(joined) == serialized(expected)
    added = join_timings([table for _, table in results], 0)
    assert added.drop(["seconds"]).equals(timings.drop(["seconds"]))
    assert added.schema == timings.schema


def serialized(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def test_roundtrip_joined_pieces_have_the_bits_of_their_part() -> None:
    assert pieces_per_part(plan_parts(study("behavior_cloning")), 4) == 4
    check_bits(study("behavior_cloning", "greedy_mle"), 4)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["jax", "numba"])
def test_roundtrip_joined_pieces_of_every_method_have_the_bits_of_their_part(kernel: str) -> None:
    check_bits(replace(study(*METHODS, seeds=30, actions=8), kernel=kernel), 7)
