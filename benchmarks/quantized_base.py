"""Held-out margins of LoRA on a quantized base, compared with LoRA on a float32 base.

    python benchmarks/quantized_base.py --model FOLDER --data FILE [--seeds 5] [--out FILE]

Each run makes 50 RPO steps of 8 pairs; pairs are truncated to 128 tokens. The margin of a held-out
pair is the implicit reward of the chosen response minus that of the rejected one, relative to the
initial policy of the same run. Each base is trained once per seed, which sets the initial adapters
and the order of the pairs. The table has the mean margin over pairs and seeds, and its difference
to the float32 base with a 95 % interval of Student's t over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

BASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
}
BETA = 0.1


def measure(base: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one run; return the margins of its held-out pairs, and the time of its steps."""
    from llm.config import (
        DataConfig,
        ModelConfig,
        ObjectiveConfig,
        OptimizerConfig,
        TrainConfig,
        TrainerConfig,
    )
    from llm.hf.factory import resolve_model
    from llm.precision import computing_in
    from llm.train.dataset import load_training_data
    from llm.train.trainer import Trainer

    config = TrainConfig(
        name=f"{base}-{seed}",
        model=ModelConfig(path=args.model, lora_r=16, lora_alpha=32.0, seed=seed, **BASES[base]),
        data=DataConfig(
            train=args.data, eval_rows=args.held_out, max_length=args.max_length, on_error="skip"
        ),
        objective=ObjectiveConfig(method="rpo", beta=BETA, eta=0.05),
        optimizer=OptimizerConfig(learning_rate=args.learning_rate),
        trainer=TrainerConfig(
            max_steps=args.steps,
            per_device_train_batch_size=args.pairs,
            logging_steps=1,
            seed=seed,
        ),
    )
    model = resolve_model(config.model)
    data = load_training_data(config.data, model)

    def log_probs(trainer: Trainer) -> np.ndarray:
        """Return the log-probabilities of both responses of each held-out pair."""
        run, rows = trainer.run, []
        with computing_in("float32"):
            for batch in run.batches_in_order(data.evaluation):
                batch = batch._replace(reference=np.zeros(batch.lengths.shape, np.float32))
                placed = run.put_on_devices(batch)
                _, scores = run.evaluation_step(run.state.trainable, run.frozen, placed)
                rows.append(
                    np.asarray(scores)[np.asarray(batch.present).reshape(scores.shape[:-1])]
                )
        return np.concatenate(rows)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, model, data, Path(folder))
        before = log_probs(trainer)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        changes = log_probs(trainer) - before
    margins = BETA * (changes[:, 0] - changes[:, 1])
    return {
        "margins": margins.tolist(),
        "log_probs": before.mean(axis=0).tolist(),
        "seconds": seconds,
    }


def main() -> None:
    """Train all runs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="file of preference rows")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, default=5, help="number of runs of each base")
    parser.add_argument("--out", type=Path, help="JSON file of the margins of all runs")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {base: [] for base in BASES}
    for seed in range(args.seeds):
        for base, runs in results.items():
            runs.append(measure(base, seed, args))
            sys.stdout.write(f"{base} {seed}: margin {np.mean(runs[-1]['margins']):+.5f}\n")
            sys.stdout.flush()
            if args.out is not None:
                args.out.write_text(json.dumps(results), encoding="utf-8")
    means = {
        base: np.array([np.mean(run["margins"]) for run in runs]) for base, runs in results.items()
    }
    quantile = scipy.stats.t.ppf(0.975, args.seeds - 1) / np.sqrt(args.seeds)
    for base, runs in results.items():
        margins = np.array([run["margins"] for run in runs])
        differences = means[base] - means["float32"]
        sys.stdout.write(
            f"{base:<8} margin {margins.mean():+.5f}, accuracy {(margins > 0).mean():.3f}, "
            f"difference {differences.mean():+.5f} +- {quantile * differences.std(ddof=1):.5f}, "
            f"log-probabilities before training {np.round(runs[0]['log_probs'], 3).tolist()}, "
            f"{np.median([run['seconds'] for run in runs]):.0f} s\n"
        )


if __name__ == "__main__":
    main()
