"""Data and configurations: good ones, how they are spoilt, and what reads them."""

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
from fuzz_target import NAME, Feed, Target

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
    """Problem files of ``rpo solve``."""
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
    """Votes in CSV."""
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

    def spoil(rng: Random) -> bytes:
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
        spoil,
        cells,
        errors=(VotesFileError,),
    )


def _configuration(folder: Path, cls: type[Any], document: dict[str, Any]) -> Target:
    from rpo.runtime.config_files import read_config

    path = folder / f"{NAME}.yaml"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        read_config(path, cls)

    def spoil(rng: Random) -> bytes:
        return mutations.to_bytes(mutations.mutate_document(rng, document))

    return Target(feed, [yaml.safe_dump(document).encode()], spoil)


def study(folder: Path) -> Target:
    """Configurations of ``rpo study``."""
    from bandits.study.config import StudyConfig

    return _configuration(folder, StudyConfig, STUDY)


def training(folder: Path) -> Target:
    """Configurations of ``rpo train``."""
    from llm.config import TrainConfig

    return _configuration(folder, TrainConfig, TRAINING)


def _preferences(folder: Path, ending: str) -> Feed:
    from llm.data.preferences import read_preferences

    path = folder / (NAME + ending)

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        read_preferences(path)

    return feed


def _lines(rows: Sequence[Any]) -> bytes:
    return b"".join(mutations.to_bytes(row) + b"\n" for row in rows)


def jsonl(folder: Path) -> Target:
    """Preference rows as JSON lines."""
    from llm.data.preferences import RowError

    def spoil(rng: Random) -> bytes:
        return _lines([rng.choice(ROWS), mutations.mutate_document(rng, rng.choice(ROWS))])

    errors = (ValueError, RowError)
    return Target(_preferences(folder, ".jsonl"), [_lines(ROWS)], spoil, errors=errors)


def jsonl_gz(folder: Path) -> Target:
    """The same, packed."""
    plain = jsonl(folder)

    def spoil(rng: Random) -> bytes:
        return gzip.compress(plain.spoil(rng), 1) + rng.choice(
            (b"", b"\0", b"x", gzip.compress(b"{"))
        )

    seeds = [gzip.compress(seed) for seed in plain.seeds]
    return Target(_preferences(folder, ".jsonl.gz"), seeds, spoil, errors=plain.errors)


def parquet(folder: Path) -> Target:
    """Preference rows as Parquet; what cannot be a table is a row of another one."""
    import pyarrow as pa
    from pyarrow import parquet as files

    plain = jsonl(folder)

    def packed(rows: Sequence[Any], **options: Any) -> bytes:
        sink = io.BytesIO()
        files.write_table(pa.Table.from_pylist(list(rows)), sink, **options)
        return sink.getvalue()

    good = [packed([row] * 3) for row in ROWS] + [packed(ROWS[:1], compression="zstd")]

    def spoil(rng: Random) -> bytes:
        rows = [mutations.mutate_document(rng, rng.choice(ROWS)) for _ in range(2)]
        try:
            whole = packed([row for row in rows if isinstance(row, dict)])
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            whole = rng.choice(good)
        place = rng.randrange(1, len(whole))
        return (
            whole if rng.random() < 0.5 else whole[:place] + rng.randbytes(1) + whole[place + 1 :]
        )

    return Target(_preferences(folder, ".parquet"), good, spoil, errors=plain.errors)


def judgments(folder: Path) -> Target:
    """Files of judges, of both kinds."""
    from llm.evaluation.judgments import count_wins, read_judgments

    kinds = {".json": [ALPACA, ALPACA], ".jsonl": [MT_BENCH | WINNERS]}

    def feed(data: bytes) -> None:
        path = folder / (NAME + (".json" if data[:1].isspace() or data[:1] == b"[" else ".jsonl"))
        path.write_bytes(data)
        verdicts = read_judgments(path)
        count_wins(verdicts, verdicts[0].first, verdicts[0].second).win_rate()

    def spoil(rng: Random) -> bytes:
        kind = rng.choice(list(kinds))
        rows = mutations.mutate_document(rng, kinds[kind])
        return (
            mutations.to_bytes(rows)
            if kind == ".json"
            else _lines(rows if isinstance(rows, list) else [rows])
        )

    return Target(
        feed, [json.dumps(kinds[".json"], indent=1).encode(), _lines(kinds[".jsonl"])], spoil
    )


def questions(folder: Path) -> Target:
    """Questions of ``rpo generate``, of three kinds."""
    from llm.data.preferences import RowError
    from llm.evaluation.prompts import read_questions

    path = folder / f"{NAME}.json"
    rows = ({"instruction": "Say."}, {"question_id": 1, "turns": ["a", "b"]}, {"prompt": "q"})

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        read_questions(str(path))

    def spoil(rng: Random) -> bytes:
        row = mutations.mutate_document(rng, rng.choice(rows))
        return rng.choice((mutations.to_bytes([row, row]), _lines([row, row])))

    seeds = [*(_lines([row]) for row in rows), json.dumps(rows[:1]).encode()]
    return Target(feed, seeds, spoil, errors=(ValueError, RowError))
