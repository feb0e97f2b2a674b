"""Profile of a training step on a CPU: a trace, and milliseconds by part of the step.

    python benchmarks/profile_step.py --model FOLDER [--out DIR] [--remat dots]

The step is that of trl_step.py: 4 pairs of HH (harmless), SmolLM2-135M in float32. Time is divided
equally among the operations that run at the same moment. Time without a traced operation (other
threads of a matrix product, waiting) counts as "other". DIR/trace holds the trace for Perfetto. Set
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which shortens a step by a fifth.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
from trl_step import DATA, choose_rows, make_steps, matmul_rate

INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', re.M)
LOOPS = ("while", "call", "conditional")


def part_of(instruction: str, name: str) -> str:
    """Return the part of the step that an instruction belongs to, by its JAX operation name."""
    side = "backward" if "transpose" in name else "forward"
    if name.count("while/body") >= 2:
        return f"attention, {side}"
    if re.search(r"s[dv],v?[ds]d?->", name) or "branch_" in name:
        return "output head"
    if "while/body" in name and "dot_general" in name:
        return f"matrix products of layers, {side}"
    if "dynamic" in instruction or "dynamic" in name:
        return "slices of stacked layers"
    if "while/body" in name:
        return f"norms, rotary embeddings, activations, {side}"
    return "optimizer, embedding, zero initialization"


def milliseconds(events: list[dict[str, Any]], names: dict[str, str]) -> dict[str, float]:
    """Return milliseconds by part; time without any operation is ``other``."""
    spans = [
        event
        for event in events
        if event.get("ph") == "X"
        and "hlo_op" in event.get("args", {})
        and not event["args"]["hlo_op"].startswith(LOOPS)
    ]
    edges = sorted(
        [(span["ts"], 1, i) for i, span in enumerate(spans)]
        + [(span["ts"] + span["dur"], 0, i) for i, span in enumerate(spans)]
    )
    spent: dict[str, float] = defaultdict(float)
    running: set[int] = set()
    last = edges[0][0]
    for at, begins, i in edges:
        for index in running:
            instruction = spans[index]["args"]["hlo_op"]
            part = part_of(instruction, names.get(instruction, ""))
            spent[part] += (at - last) / len(running) / 1e3
        if not running:
            spent["other"] += (at - last) / 1e3
        (running.add if begins else running.discard)(i)
        last = at
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def main() -> None:
    """Compile, warm up, trace one step and print the table."""
    parser = argparse.ArgumentParser(description="profile of a training step")
    parser.add_argument("--model", default=os.environ.get("RPO_SMOLLM2", ""))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    vars(args).update(steps=1, pairs=4, max_length=256, max_prompt=192)
    if not (Path(args.model) / "config.json").is_file():
        parser.error(f"--model: {args.model}/config.json is not there")
    run, (batch,) = make_steps(args, choose_rows(args))
    batch = run.put_on_devices(batch)
    compiled = run.train_step.lower(run.state, run.frozen, batch).compile()
    names = {match[1]: match[2] for match in INSTRUCTION.finditer(compiled.as_text())}
    for _ in range(2):
        run.state, result = run.train_step(run.state, run.frozen, batch)
        float(result.metrics["loss"])
    trace = args.out / "trace"
    shutil.rmtree(trace, ignore_errors=True)
    with jax.profiler.trace(str(trace), create_perfetto_trace=True):
        started = time.perf_counter()
        run.state, result = run.train_step(run.state, run.frozen, batch)
        float(result.metrics["loss"])
        seconds = time.perf_counter() - started
    file = next(trace.glob("plugins/profile/*/*.trace.json.gz"))
    by_part = milliseconds(json.loads(gzip.decompress(file.read_bytes()))["traceEvents"], names)
    for part, spent in by_part.items():
        print(f"{spent:8.0f} ms  {part}")
    rate = matmul_rate()
    print(f"{1e3 * seconds:8.0f} ms  the step, traced; matrix products reach {rate:.0f} GFLOP/s")
    (args.out / "profile_step.json").write_text(json.dumps(by_part, indent=1) + "\n")


if __name__ == "__main__":
    main()
