"""Speed and memory of a training step compared with TRL's, on the same tokens.

    python benchmarks/trl_step.py --model FOLDER --trl-python PYTHON [--out DIR] [--remat dots]

Both sides run ten steps of 4 pairs of HH (harmless) with prompts of at most 192 tokens, truncated
at 256: full fine-tuning in float32 with AdamW, a cached reference and huge pages. Each side runs in
a process of its own, one after the other, on the same token ids. This package runs the ten steps
once to compile and once to measure; compilation time is reported separately. The upper limit is the
rate of a float32 matrix product on this machine. Useful work counts the unique tokens in the layers
and the completion tokens in the head, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh-harmless-test.jsonl.gz"
RATE, BETA = 5e-7, 0.1


def choose_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the token ids of the first pairs with a short prompt."""
    from llm.data.model_folder import resolve_model_folder
    from llm.data.preferences import read_preferences
    from llm.text.tokenize import tokenize_rows
    from llm.text.tokenizer import load_tokenizer

    rows = read_preferences(str(args.data), check_content=False)
    tokenizer = load_tokenizer(resolve_model_folder(args.model))
    data = tokenize_rows(rows, tokenizer, max_length=args.max_length, on_error="skip")
    short = [pair for pair in data.pairs if len(pair.prompt) <= args.max_prompt]
    return [
        {
            "prompt_ids": list(pair.prompt),
            "chosen_ids": list(pair.chosen),
            "rejected_ids": list(pair.rejected),
        }
        for pair in short[: args.steps * args.pairs]
    ]


def make_steps(args: argparse.Namespace, rows: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """Return a run of this package on the rows, and the batches of its steps."""
    from llm.config import (
        DataConfig,
        ModelConfig,
        ObjectiveConfig,
        OptimizerConfig,
        TrainConfig,
        TrainerConfig,
    )
    from llm.data.pair_table import PairTable
    from llm.data.preferences import PairTokens
    from llm.hf.factory import build_model, resolve_model
    from llm.train import reference_cache
    from llm.train.dataset import TrainingData
    from llm.train.run import Run

    ends = ("prompt_ids", "chosen_ids", "rejected_ids")
    tokens = [[tuple(row[end]) for end in ends] for row in rows]
    pairs = PairTable.from_pairs(
        PairTokens(prompt, chosen, rejected, None, row)
        for row, (prompt, chosen, rejected) in enumerate(tokens)
    )
    config = TrainConfig(
        name="trl_step",
        model=ModelConfig(path=args.model, remat=args.remat),
        data=DataConfig(train="rows", max_length=args.max_length),
        objective=ObjectiveConfig(method="dpo", beta=BETA),
        optimizer=OptimizerConfig(learning_rate=RATE),
        trainer=TrainerConfig(max_steps=2 * args.steps, per_device_train_batch_size=args.pairs),
    )
    provenance = {"tokenizer": "", "template": "", "data": ""}
    data = TrainingData(pairs, PairTable.from_pairs([]), provenance, {}, frozenset())
    run = Run(config, data, build_model(resolve_model(config.model), config.mesh))
    with tempfile.TemporaryDirectory() as folder:
        cache = run.reference(Path(folder) / "reference.safetensors")
    assert cache is not None
    return run, [
        reference_cache.attach_reference(run.assign_to_shards(run.sampler.batch(step)), cache)
        for step in range(args.steps)
    ]


def our_side(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure the steps of this package."""
    import jax

    run, batches = make_steps(args, rows)

    def all_steps() -> float:
        started = time.perf_counter()
        for batch in batches:
            run.state, result = run.train_step(run.state, run.frozen, run.put_on_devices(batch))
            float(result.metrics["loss"])
        jax.block_until_ready(run.state)
        return time.perf_counter() - started

    first = all_steps()
    seconds = all_steps()
    head = run.model().embedding[...].size
    layers = sum(leaf.size for leaf in jax.tree.leaves(run.state.trainable)) - head
    unique = sum(int((batch.rows.segments > 0).sum()) for batch in batches)
    predicted = sum(int(batch.lengths.sum()) for batch in batches)
    return {
        "seconds": seconds,
        "compile_seconds": first - seconds,
        "tokens": sum(batch.rows.tokens.size for batch in batches),
        "unique_tokens": unique,
        "useful_gflop": 6e-9 * (unique * layers + predicted * head),
    }


def their_side(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure the steps of TRL, in an environment with torch and TRL."""
    import torch  # pyright: ignore[reportMissingImports]
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        AutoModelForCausalLM,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]

    class Rows(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *unused: Any) -> Any:
            return dataset

    class Clock(TrainerCallback):
        started, seconds = None, 0.0

        def on_step_begin(self, *unused: Any, **named: Any) -> None:
            self.started = self.started or time.perf_counter()

        def on_step_end(self, *unused: Any, **named: Any) -> None:
            self.seconds = time.perf_counter() - (self.started or 0.0)

    torch.set_num_threads(os.cpu_count() or 1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=BETA,
            learning_rate=RATE,
            per_device_train_batch_size=args.pairs,
            max_steps=args.steps,
            max_length=None,
            precompute_ref_log_probs=True,
            gradient_checkpointing=args.remat != "none",
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=args.steps,
        )
        trainer = Rows(
            AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[clock],
        )
        trainer.train()
    return {"seconds": clock.seconds}


def matmul_rate() -> float:
    """Return the best of 30 rates of a float32 matrix product of the model's shape, GFLOP/s."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=size).astype(np.float32) for size in ((832, 576), (576, 1536)))
    multiply = jax.jit(lambda a, b: a @ b)
    times = []
    for _ in range(31):
        started = time.perf_counter()
        multiply(a, b).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2e-9 * 832 * 576 * 1536 / min(times[1:])


def in_process(python: str, side: str, rows: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own; return its measurements with the peak memory."""
    command = [python, __file__, "--side", side, "--rows", str(rows), "--model", args.model]
    for name in ("steps", "pairs", "max_length", "remat"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    environment = {**os.environ, **HUGE_PAGES}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure both sides, print a table and write JSON."""
    parser = argparse.ArgumentParser(description="a training step compared with TRL's")
    parser.add_argument("--model", default=os.environ.get("RPO_SMOLLM2", ""))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--trl-python", default=".venv-parity/bin/python")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--max-prompt", type=int, default=192)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        rows = json.loads(args.rows.read_text())
        result = our_side(args, rows) if args.side == "ours" else their_side(args, rows)
        result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        sys.stdout.write("\n" + json.dumps(result) + "\n")
        return
    for path, option in ((Path(args.model) / "config.json", "--model"), (args.data, "--data")):
        if not path.is_file():
            parser.error(f"{option}: {path} is not there")
    if not Path(args.trl_python).is_file():
        parser.error(f"--trl-python: {args.trl_python} is not there: make parity installs it")
    report(args)


def report(args: argparse.Namespace) -> None:
    """Measure both sides and the rate of the machine; print and write the results."""
    rows = choose_rows(args)
    padded = 0
    for start in range(0, len(rows), args.pairs):
        part = rows[start : start + args.pairs]
        ends = ("chosen_ids", "rejected_ids")
        longest = max(len(row["prompt_ids"]) + len(row[end]) for row in part for end in ends)
        padded += 2 * len(part) * longest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        path.write_text(json.dumps(rows))
        trl = in_process(args.trl_python, "trl", path, args) | {"tokens": padded}
        ours = in_process(sys.executable, "ours", path, args)
    rate = matmul_rate()
    results = {
        "settings": {key: str(value) for key, value in vars(args).items() if value is not None},
        "ours": ours,
        "trl": trl,
        "speed_ratio": trl["seconds"] / ours["seconds"],
        "memory_ratio": ours["peak_gib"] / trl["peak_gib"],
        "matmul_gflops": rate,
        "useful_share_of_matmul_rate": ours["useful_gflop"] / ours["seconds"] / rate,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"trl_step_{args.remat}_{args.pairs}.json").write_text(
        json.dumps(results, indent=1)
    )
    for name, side in (("ours", ours), ("TRL", trl)):
        pace, peak = side["seconds"] / args.steps, side["peak_gib"]
        print(f"{name:5} {pace:7.2f} s a step  {peak:5.2f} GiB  {side['tokens']:,} tokens in all")
    print(
        f"{results['speed_ratio']:.2f} times TRL's speed at {results['memory_ratio']:.2f} of its "
        f"memory; {100 * results['useful_share_of_matmul_rate']:.0f} % of {rate:.0f} GFLOP/s; "
        f"{ours['compile_seconds']:.0f} s of compilation"
    )


if __name__ == "__main__":
    main()
