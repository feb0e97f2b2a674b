"""Fuzz targets of data and configuration files."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import mutations
import yaml
from fuzz_target import NAME, Read, Target

SHAPES = {"context_weights": [0.25, 0.75], "reference_policy": [[0.2, 0.3, 0.5], [1, 0, 0]]}
PROBLEM = {
    **SHAPES,
    "baseline_policy": [[1, 0, 0], [0.5, 0.5, 0]],
    "comparisons": [[0, 1, 2, 3], [0, 1, 2, 0.5], [0, 2, 2, 1]],
    "beta": 0.1,
    "eta": 2,
    "reward_class": {"kind": "linear", "features": [[[1, 2]] * 3] * 2, "radius": 1.5},
    "true_reward": [[0, 1, 2], [-1, 0, 7.5]],
    "comparator": [[0, 0, 1], [1, 0, 0]],
}
STUDY = {
    "name": "a",
    "methods": [{"method": "rpo", "options": {"baseline": "chosen"}}, {"method": "dpo"}],
    "comparisons": [20, 50],
    "seeds": 2,
    "eta": [0.1, "tight"],
    "environments": ["named:four_arms", "design"],
    "design": {"contexts": 2, "target_coverage": [1.0, 2.0]},
    "quick": {"seeds": 1},
}
TRAINING = {
    "name": "a",
    "model": {"path": "m", "lora_r": 4, "lora_target_modules": ["q_proj"], "dtype": "float32"},
    "data": {"train": "r.jsonl", "max_length": 16, "on_error": "skip"},
    "objective": {"method": "rpo", "beta": 0.5, "eta": 0.1},
    "optimizer": {"learning_rate": 1e-4, "warmup_ratio": 0.1},
    "trainer": {"max_steps": 2, "report_to": ["tensorboard"]},
    "mesh": {"fsdp": 2},
}
USER, REPLY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
ROWS = (
    {"prompt": "q", "chosen": "yes", "rejected": "no", "baseline": "so"},
    {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "b"}]},
    {"prompt": [{**USER, "role": "system"}, USER], "chosen": [REPLY], "rejected": "n"},
    {
        "prompt": "q",
        "chosen": "c",
        "rejected": "r",
        "ref_chosen_logps": -1,
        "ref_rejected_logps": -2,
    },
)
ALPACA = {"instruction": "Say.", "generator_1": "a", "generator_2": "b", "preference": 2.0}
MT_BENCH = {"question_id": 81, "model_1": "a", "model_2": "b", "turn": 1}
WINNERS = {"g1_winner": "model_1", "g2_winner": "tie"}


def problem(folder: Path) -> Target:
    """Make the target of problem files of ``rpo solve``."""
    from rpo.solving.problem_files import from_document
    from rpo_io.json_document import DocumentError, parse_document

    kinds = [{"kind": "tabular", "max": 2}, {"kind": "finite", "rewards": [[[0, 1, 2]] * 2]}]
    variants = [{"reward_class": kind, "baseline_policy": "chosen"} for kind in kinds]
    documents = [PROBLEM, *(PROBLEM | variant for variant in variants)]
    return Target(
        lambda data: from_document(parse_document(data, name=NAME)),
        [json.dumps(document, indent=1).encode() for document in documents],
        lambda rng: mutations.to_bytes(mutations.mutate_document(rng, rng.choice(documents))),
        errors=(DocumentError,),
    )


def votes(folder: Path) -> Target:
    """Make the target of votes in CSV."""
    from bandits.environments.votes import VotesFileError, parse_votes

    seeds = [
        b"context,winner,loser,count\nq,a,b,3\n\"q, r\",b,a,0\r\nq,a,'c',12\n",
        b"\xef\xbb\xbfcontext,winner,loser\nq,a,b\nq,b,a\n",
    ]
    cells = [
        b"q",
        b"",
        b'"',
        b'"a""b"',
        b'"\n"',
        b"-1",
        b"1e3",
        b"9" * 20,
        "é".encode(),
        b"\xff",
        b",",
    ]

    def damage(rng: Random) -> bytes:
        header = rng.choice(seeds).splitlines()[0]
        width = rng.choice((3, 4, 4, 4, 5))
        rows = [
            b",".join([*rng.choices(cells, k=width - 1), rng.choice((b"1", b"22", *cells))])
            for _ in range(rng.randrange(9))
        ]
        return rng.choice((b"\n", b"\r\n", b"\r")).join([header, *rows])

    return Target(
        lambda data: parse_votes(io.BytesIO(data), name=NAME),
        seeds,
        damage,
        cells,
        errors=(VotesFileError,),
    )


def _configuration(folder: Path, cls: type[Any], document: dict[str, Any]) -> Target:
    from rpo.runtime.config_files import read_config

    path = folder / f"{NAME}.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_config(path, cls)

    def damage(rng: Random) -> bytes:
        return mutations.to_bytes(mutations.mutate_document(rng, document))

    return Target(read, [yaml.safe_dump(document).encode()], damage)


def study(folder: Path) -> Target:
    """Make the target of configurations of ``rpo study``."""
    from bandits.study.config import StudyConfig

    return _configuration(folder, StudyConfig, STUDY)


def training(folder: Path) -> Target:
    """Make the target of configurations of ``rpo train``."""
    from llm.config import TrainConfig

    return _configuration(folder, TrainConfig, TRAINING)


def _preferences(folder: Path, suffix: str) -> Read:
    from llm.data.preferences import read_preferences

    path = folder / (NAME + suffix)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_preferences(path)

    return read


def _lines(rows: Sequence[Any]) -> bytes:
    return b"".join(mutations.to_bytes(row) + b"\n" for row in rows)


def jsonl(folder: Path) -> Target:
    """Make the target of preference rows as JSON lines."""
    from llm.data.preferences import RowError

    def damage(rng: Random) -> bytes:
        return _lines([rng.choice(ROWS), mutations.mutate_document(rng, rng.choice(ROWS))])

    errors = (ValueError, RowError)
    return Target(_preferences(folder, ".jsonl"), [_lines(ROWS)], damage, errors=errors)


def jsonl_gz(folder: Path) -> Target:
    """Make the target of preference rows as gzipped JSON lines."""
    plain = jsonl(folder)

    def damage(rng: Random) -> bytes:
        return gzip.compress(plain.damage(rng), 1) + rng.choice(
            (b"", b"\0", b"x", gzip.compress(b"{"))
        )

    seeds = [gzip.compress(seed) for seed in plain.seeds]
    return Target(_preferences(folder, ".jsonl.gz"), seeds, damage, errors=plain.errors)


def parquet(folder: Path) -> Target:
    """Make the target of preference rows as Parquet; rows that form no table are left out."""
    import pyarrow as pa
    from pyarrow import parquet as files

    plain = jsonl(folder)

    def table(rows: Sequence[Any], **options: Any) -> bytes:
        sink = io.BytesIO()
        files.write_table(pa.Table.from_pylist(list(rows)), sink, **options)
        return sink.getvalue()

    good = [table([row] * 3) for row in ROWS] + [table(ROWS[:1], compression="zstd")]

    def damage(rng: Random) -> bytes:
        rows = [mutations.mutate_document(rng, rng.choice(ROWS)) for _ in range(2)]
        try:
            content = table([row for row in rows if isinstance(row, dict)])
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            content = rng.choice(good)
        i = rng.randrange(1, len(content))
        return content if rng.random() < 0.5 else content[:i] + rng.randbytes(1) + content[i + 1 :]

    return Target(_preferences(folder, ".parquet"), good, damage, errors=plain.errors)


def judgments(folder: Path) -> Target:
    """Make the target of judgment files of both formats."""
    from llm.evaluation.judgments import count_wins, read_judgments

    kinds = {".json": [ALPACA, ALPACA], ".jsonl": [MT_BENCH | WINNERS]}

    def read(data: bytes) -> None:
        path = folder / (NAME + (".json" if data[:1].isspace() or data[:1] == b"[" else ".jsonl"))
        path.write_bytes(data)
        verdicts = read_judgments(path)
        count_wins(verdicts, verdicts[0].first, verdicts[0].second).win_rate()

    def damage(rng: Random) -> bytes:
        kind = rng.choice(list(kinds))
        rows = mutations.mutate_document(rng, kinds[kind])
        return (
            mutations.to_bytes(rows)
            if kind == ".json"
            else _lines(rows if isinstance(rows, list) else [rows])
        )

    return Target(
        read, [json.dumps(kinds[".json"], indent=1).encode(), _lines(kinds[".jsonl"])], damage
    )


def questions(folder: Path) -> Target:
    """Make the target of question files of ``rpo generate``, of three formats."""
    from llm.data.preferences import RowError
    from llm.evaluation.prompts import read_questions

    path = folder / f"{NAME}.json"
    rows = ({"instruction": "Say."}, {"question_id": 1, "turns": ["a", "b"]}, {"prompt": "q"})

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_questions(str(path))

    def damage(rng: Random) -> bytes:
        row = mutations.mutate_document(rng, rng.choice(rows))
        return rng.choice((mutations.to_bytes([row, row]), _lines([row, row])))

    seeds = [*(_lines([row]) for row in rows), json.dumps(rows[:1]).encode()]
    return Target(read, seeds, damage, errors=(ValueError, RowError))
