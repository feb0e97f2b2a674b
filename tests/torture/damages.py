"""Random damage to every kind of file that the packages read back.

A separate process reads the files, ``python damages.py KIND FOLDER FIRST LAST SEED``, and prints
one line per trial, so that a reader that crashes or hangs is detected too.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SLOWEST = 60  # seconds that a reader may take on a busy machine
SIZES: dict[str, Any] = {"vocab_size": 261, "hidden_size": 8, "intermediate_size": 8}


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        files: files to damage.
        read: reads all of them as a command does and returns a digest of the content.
    """

    files: list[Path]
    read: Callable[[], str]


def checkpoint(folder: Path) -> Kind:
    """Return every file of the last of two checkpoints."""
    import jax
    import numpy as np

    from llm.hashing import weights_digest
    from llm.train.checkpoint import Checkpoints
    from llm.train.fingerprint import Fingerprint

    def state(number: int) -> dict[str, Any]:
        rng = np.random.default_rng(number)
        shapes = {"weights": (64, 48), "moments": (64, 48), "bias": (48,), "count": ()}
        return {name: jax.numpy.asarray(rng.normal(size=s)) for name, s in shapes.items()}

    fingerprint = Fingerprint({}, {}, {"name": "damaged"}, "0.1.0")

    def opened() -> Checkpoints:
        return Checkpoints(folder / "checkpoints", keep=2, fingerprint=fingerprint)

    if not (folder / "checkpoints").exists():
        with opened() as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, state(step), {"step": step})

    def read() -> str:
        record, restored = opened().restore(state(0))
        return weights_digest(restored) + json.dumps(record)

    step = folder / "checkpoints" / "2"
    return Kind(sorted(path for path in step.rglob("*") if path.is_file()), read)


def _store(folder: Path) -> Any:
    import numpy as np
    import pyarrow as pa

    from bandits.study.record_table import TableBuilder
    from bandits.study.records import RecordStore

    store = RecordStore(folder, {"name": "damaged", "seeds": 400})
    for number in range(2):
        if not store.is_finished() and not store.has_part(number):
            columns = TableBuilder(400)
            columns.add_strings("label", np.arange(400) % 2, ["rpo", "dpo"])
            columns.add_numbers("gap", np.random.default_rng(number).random(400))
            seconds = pa.table({"part": [number], "seconds": [0.5]})
            store.write_part(number, columns.build(), seconds)
    return store


def part(folder: Path) -> Kind:
    """Return the parts of an unfinished study with their timings and digests."""
    store = _store(folder)

    def read() -> str:
        store.check(resume=True)
        store.merge(2)
        found = _values(store.read_table())
        for path in folder.glob("*.parquet*"):
            path.unlink()
        return found

    return Kind(sorted((folder / "parts").iterdir()), read)


def records(folder: Path) -> Kind:
    """Return the records of a finished study and their digest."""
    store = _store(folder)
    if not store.is_finished():
        store.merge(2)

    def read() -> str:
        store.check(resume=True)
        return _values(store.read_table())

    return Kind([folder / "records.parquet", folder / "records.parquet.sha256"], read)


def _values(table: Any) -> str:
    return hashlib.sha256(repr((table.schema, table.to_pydict())).encode()).hexdigest()


def reference(folder: Path) -> Kind:
    """Return the cached log-probabilities of the reference."""
    import numpy as np

    from llm.hashing import weights_digest
    from llm.train.reference_cache import Provenance, ReferenceCache, load_cache, save_cache

    digests = dict.fromkeys(("weights", "tokenizer", "template", "data"), "ab" * 32)
    provenance = Provenance(
        **digests, max_length=64, max_prompt_length=None, truncation_mode="end", dtype="float32"
    )
    path = folder / "reference.safetensors"
    if not path.exists():
        values = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
        save_cache(path, ReferenceCache(np.arange(200), values), provenance)
    return Kind([path], lambda: weights_digest(load_cache(path, provenance)._asdict()))


def _model(folder: Path) -> Path:
    from flax import nnx

    from llm.hf.io import export_model
    from llm.models.architecture import Architecture
    from llm.models.decoder import Decoder

    if not (folder / "model").exists():
        decoder = Decoder(
            Architecture(**SIZES, num_hidden_layers=1, num_attention_heads=2), rngs=nnx.Rngs(0)
        )
        export_model(decoder, folder / "model")
    return folder / "model"


def exported(folder: Path) -> Kind:
    """Return exported weights, which carry digests."""
    from flax import nnx

    from llm.hashing import weights_digest
    from llm.hf.io import load_model

    model = _model(folder)
    return Kind([model / "model.safetensors"], lambda: weights_digest(nnx.state(load_model(model))))


def foreign(folder: Path) -> Kind:
    """Return foreign weights without digests, from which a run starts and resumes."""
    from safetensors.numpy import load_file, save_file

    from llm.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
    from llm.hf.factory import build_model, resolve_model
    from llm.train.dataset import load_training_data
    from llm.train.run import Run

    model = _model(folder)
    weights = model / "model.safetensors"
    rows = folder / "rows.jsonl"
    if not rows.exists():
        save_file(load_file(weights), weights, metadata={"format": "pt"})
        rows.write_text('{"prompt": "q", "chosen": "yes", "rejected": "no"}\n' * 4)
    config = TrainConfig(
        name="damaged",
        model=ModelConfig(path=str(model)),
        data=DataConfig(train=str(rows), tokenizer="bytes", max_length=16),
        trainer=TrainerConfig(max_steps=1),
    )
    resolved = resolve_model(config.model)
    data = load_training_data(config.data, resolved)
    stored = folder / "fingerprint"

    def read() -> str:
        fingerprint = Run(config, data, build_model(resolved, config.mesh)).fingerprint()
        if stored.exists():
            difference = fingerprint.difference(json.loads(stored.read_text()))
            if difference is not None:
                raise ValueError(f"{weights}: a checkpoint of {difference}")  # as Checkpoints does
        stored.write_text(json.dumps(fingerprint._asdict()))
        return stored.read_text()

    return Kind([weights], read)


KINDS = {
    "checkpoint": checkpoint,
    "part of a study": part,
    "records.parquet": records,
    "reference cache": reference,
    "exported weights": exported,
    "weights of others, on resume": foreign,
}


def damaged(good: bytes, rng: random.Random) -> bytes:
    """Return content with one wrong bit, a block of zeros, or a missing end."""
    index = rng.randrange(max(len(good), 1))
    match rng.random():
        case x if x < 0.6 and good:
            wrong = bytes([good[index] ^ (1 << rng.randrange(8))])
            return good[:index] + wrong + good[index + 1 :]
        case x if x < 0.75:
            return good[:index] + bytes(len(good[index : index + 64])) + good[index + 64 :]
        case _:
            return good[:index]


def outcome(kind: Kind, expected: str) -> str:
    """Return how a reader reacts to the files."""
    try:
        content = kind.read()
    except ValueError:
        return "detected"
    except Exception as error:
        return f"traceback {type(error).__name__}: {error}"
    return "harmless" if content == expected else "silently wrong"


def trials(name: str, folder: Path, first: int, last: int, seed: int) -> None:
    """Damage and read files; print one line per trial."""
    kind = KINDS[name](folder)
    expected = kind.read()
    for trial in range(first, last):
        rng = random.Random(f"{seed} {name} {trial}")
        path = rng.choice(kind.files)
        good = path.read_bytes()
        bad = damaged(good, rng)
        path.write_bytes(bad)
        signal.alarm(SLOWEST)
        result = outcome(kind, expected) if bad != good else "harmless"
        signal.alarm(0)
        path.write_bytes(good)
        print(json.dumps({"trial": trial, "file": path.name, "outcome": result}), flush=True)


def torture(name: str, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Run all trials of a kind; return the counts and what went wrong."""
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="damages") as folder:
        first = 0
        while first < count:
            command = [sys.executable, __file__, name, folder, str(first), str(count), str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            first += len(lines)
            if first < count:  # the process died of this trial
                lines.append({"file": f"trial {first}", "outcome": f"died: {done.stderr[-500:]}"})
                first = count
            for line in lines:
                tally[line["outcome"]] += 1
                if line["outcome"] not in ("detected", "harmless"):
                    wrong.append(f"{name}, {line['file']}: {line['outcome']}")
    return tally, wrong


if __name__ == "__main__":
    what, where, *numbers = sys.argv[1:]
    trials(what, Path(where), *map(int, numbers))
