"""Speed of generation on this machine compared with transformers, and with plain products.

    python benchmarks/generation.py --model FOLDER --peer-python PYTHON [--runs 3]

Both sides answer the same prompts greedily in float32, in batches sorted by length, each in a
process of its own, one after the other. The time of this package is that of the whole command with
its programs compiled before; that of transformers is that of ``generate`` alone. The decoding loop
is then compared with the products of its weights, in one process and in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh-harmless-test.jsonl.gz"
PEER = """
import json, sys, time, torch, transformers
folder, batch, most, prompts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(int(sys.argv[5]))
prompts = sorted(json.load(open(prompts)), key=len)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
pad, count, seconds, replies = model.config.eos_token_id or 0, 0, 0.0, []
pad = pad[0] if isinstance(pad, list) else pad
for start in range(0, len(prompts), batch):
    rows = prompts[start : start + batch]
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    began = time.perf_counter()
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False,
                             pad_token_id=pad)
    seconds += time.perf_counter() - began
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    for row in out[:, width:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        count += stop
print(json.dumps({"tokens": count, "seconds": seconds}))
"""


def choose_prompts(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Return the first short prompts as rows, and as token ids."""
    from llm.data.model_folder import resolve_model_folder
    from llm.evaluation.prompts import read_questions
    from llm.text.tokenizer import load_tokenizer

    tokenizer, rows, ids = load_tokenizer(resolve_model_folder(args.model)), [], []
    for question in read_questions(str(args.data)):
        messages = [*question.prompts[0]]
        tokens = list(tokenizer.encode_prompt(messages))
        if len(tokens) <= args.max_prompt:
            rows.append({"prompt": [{"role": m.role, "content": m.content} for m in messages]})
            ids.append(tokens)
        if len(rows) == args.prompts:
            break
    return rows, ids


def run_command(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run ``rpo generate``; return its seconds and the number of generated tokens."""
    command = [sys.executable, "-m", "rpo", "generate", "--model", str(args.model)]
    command += ["--data", str(folder / "prompts.jsonl"), "--out", str(folder / "replies.jsonl")]
    command += ["--batch-size", str(args.batch), "--max-new-tokens", str(args.max_new_tokens)]
    began = time.perf_counter()
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    result = json.loads(done.stdout)
    return {"tokens": result["tokens"], "seconds": seconds, "inside": result["tokens_per_second"]}


def run_peer(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run transformers; return the seconds of ``generate`` and the number of tokens."""
    options = [str(args.batch), str(args.max_new_tokens), str(folder / "ids.json")]
    command = [args.peer_python, "-c", PEER, str(args.model), *options, str(args.threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare_loop(args: argparse.Namespace, ids: list[list[int]]) -> dict[str, float]:
    """Return milliseconds of a step of the decoding loop, and of the products of its weights."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from llm.hf.io import load_model
    from llm.inference import continuous
    from llm.inference.generate import GenerationConfig, generate_tokens

    model = load_model(Path(args.model))
    times: list[tuple[float, int]] = []
    generate = continuous._generate

    def timed(*arguments: Any, **options: Any) -> Any:
        before = np.asarray(jax.block_until_ready(arguments)[3].steps)
        began = time.perf_counter()
        state = jax.block_until_ready(generate(*arguments, **options))
        times.append((time.perf_counter() - began, int(np.max(state.steps - before))))
        return state

    continuous._generate = timed
    config = GenerationConfig(max_new_tokens=args.max_new_tokens)
    run_loop = partial(generate_tokens, model, ids, config, end_ids=(), batch_size=args.batch)
    names = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    stacked = [getattr(model.layers, name).kernel[...] for name in names]
    layers = [[kernel[i].T.copy() for kernel in stacked] for i in range(len(stacked[0]))]
    head = model.head().weight

    def multiply(kernel: Any, x: Any, summed: Any, *, by_output: bool) -> Any:
        size = kernel.shape[1 if by_output else 0]
        part = jnp.resize(x + summed, (size, args.batch))
        y = kernel @ part if by_output else (part.T @ kernel).T
        return summed + y[0, 0] * 1e-9

    @jax.jit
    def multiply_separate(layers: Any, head: Any, x: Any, n: Any) -> Any:
        def step(_: Any, summed: Any) -> Any:
            for kernel in [*chain.from_iterable(layers), head]:
                summed = multiply(kernel, x, summed, by_output=True)
            return summed

        return jax.lax.fori_loop(0, n, step, jnp.zeros(()))

    @jax.jit
    def multiply_stacked(stacked: Any, head: Any, x: Any, n: Any) -> Any:
        def step(_: Any, summed: Any) -> Any:
            def layer(summed: Any, kernels: Any) -> Any:
                for kernel in kernels:
                    summed = multiply(kernel, x, summed, by_output=False)
                return summed, None

            summed, _ = jax.lax.scan(layer, summed, stacked)
            return multiply(head, x, summed, by_output=True)

        return jax.lax.fori_loop(0, n, step, jnp.zeros(()))

    x = jnp.ones((model.architecture.hidden_size, args.batch))
    steps, measured = 16, {"loop": [], "products": [], "products of stacked kernels": []}
    for run in range(args.runs + 1):
        times.clear()
        run_loop()
        if run:  # the first one compiles
            measured["loop"].append(sum(t for t, _ in times) / sum(n for _, n in times))
        for name, multiply_all, kernels in (
            ("products", multiply_separate, layers),
            ("products of stacked kernels", multiply_stacked, stacked),
        ):
            began = time.perf_counter()
            jax.block_until_ready(multiply_all(kernels, head, x, np.int32(steps)))
            if run:
                measured[name].append((time.perf_counter() - began) / steps)
    continuous._generate = generate
    return {name: round(1e3 * statistics.median(values), 2) for name, values in measured.items()}


def main() -> None:
    """Print the measurements as one JSON object."""
    parser = argparse.ArgumentParser(description="speed of generation compared with transformers")
    parser.add_argument("--model", required=True, help="folder of a model with its tokenizer")
    parser.add_argument("--peer-python", help="Python with torch and transformers")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-prompt", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    rows, ids = choose_prompts(args)
    results: dict[str, Any] = {"prompt_tokens": sum(map(len, ids))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "ids.json").write_text(json.dumps(ids))
        if args.peer_python:
            run_command(args, folder)  # compiles
            runs = [(run_command(args, folder), run_peer(args, folder)) for _ in range(args.runs)]
            ratios = [
                (ours["tokens"] / ours["seconds"]) / (theirs["tokens"] / theirs["seconds"])
                for ours, theirs in runs
            ]
            results |= {"runs": runs, "command_over_generate": statistics.median(ratios)}
    results["milliseconds_per_step"] = step = compare_loop(args, ids)
    results["loop_over_products"] = step["products"] / step["loop"]
    sys.stdout.write(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
