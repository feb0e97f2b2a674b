"""Peak memory of a training step on the CPU against the tokens of its row.

    python benchmarks/row_memory.py --out out/bench

Each length runs in a process of its own. A row holds one pair: half of it is the prompt, a quarter
is each response. If memory is linear in the tokens, the bytes per additional token are equal for
all rows except the shortest, where the constant memory of the process dominates.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

TOKENS = (1024, 2048, 4096, 8192, 16384)
KIB = 1024


def step(tokens: int) -> dict[str, int]:
    """Train one step on a row with a given number of tokens; return its peak memory."""
    import jax
    import numpy as np
    from flax import nnx

    from llm.config import ObjectiveConfig, OptimizerConfig
    from llm.data.loader import BatchSampler
    from llm.data.preferences import PairTokens
    from llm.models.architecture import Architecture
    from llm.models.decoder import Decoder
    from llm.models.lora import trainable_filter
    from llm.parallel.mesh import single_device
    from llm.train.optimizer import make_optimizer
    from llm.train.step import init_train_state, make_train_step

    rng = np.random.default_rng(0)
    lengths = (tokens // 2, tokens // 4 + 1, tokens // 4 + 1)
    prompt, chosen, rejected = (tuple(rng.integers(0, 8192, n).tolist()) for n in lengths)
    pair = PairTokens(prompt, chosen, rejected, None, 0)
    devices = single_device()
    batch = devices.assign(BatchSampler([pair], "shared", 1, seed=None).batch(0))
    batch = batch._replace(reference=np.full(batch.lengths.shape, -7.0, np.float32))
    architecture = Architecture(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    model = Decoder(architecture, rngs=nnx.Rngs(0), remat="full")
    graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
    optimizer, _ = make_optimizer(OptimizerConfig(), 10)
    state = devices.put(init_train_state(trainable, optimizer))
    train_step = make_train_step(
        graphdef, ObjectiveConfig(beta=0.1, eta=0.1), optimizer, devices=devices
    )
    jax.block_until_ready(train_step(state, frozen, batch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    return {"tokens": int(batch.rows.tokens.size), "peak_bytes": peak}


def main() -> None:
    """Measure every length in a process of its own; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--tokens", type=int, help="measure this length in this process")
    args = parser.parse_args()
    if args.tokens:
        print(json.dumps(step(args.tokens)))
        return
    rows = []
    for tokens in TOKENS:
        command = [sys.executable, __file__, "--tokens", str(tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    for before, row in pairwise(rows):
        more = row["peak_bytes"] - before["peak_bytes"]
        row["bytes_per_more_token"] = more / (row["tokens"] - before["tokens"])
    for row in rows:
        rate = row.get("bytes_per_more_token")
        each = "" if rate is None else f"{rate / KIB:8.1f} KiB per additional token"
        print(f"{row['tokens']:6} tokens  {row['peak_bytes'] / KIB**2:8.1f} MiB  {each}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "row_memory.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
