"""Fine-tune a transformer on preferences: SFT, RPO, DPO and others, from a YAML file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rpo.runtime import processes
from rpo.runtime.compilation_cache import keep_compiled_programs

if TYPE_CHECKING:
    from llm.config import TrainConfig
    from llm.hf.factory import ResolvedModel
    from llm.train.dataset import TrainingData

OVERRIDES = True  # of the configuration, such as --objective.eta 0.1

EXAMPLES = (
    "rpo train configs/rpo_smollm2_hh.yaml --model.path FOLDER",
    "rpo train run.yaml --objective.eta 0.01 --trainer.max_steps 500",
    "rpo train run.yaml --dry-run",
    "rpo train run.yaml --resume",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for metrics, checkpoints and the resolved configuration (default out/NAME)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in the folder, or begin if there is none yet",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be trained, and write nothing"
    )
    processes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, and say where everything is."""
    from rpo.runtime.config_files import read_config
    from rpo.runtime.errors import user_input
    from rpo_io.locks import folder_lock
    from rpo_io.paths import prepare_folder

    with user_input():
        from llm.config import TrainConfig

        config = read_config(args.config, TrainConfig, args.overrides)
        group = processes.group_from(args)
        from llm.hf.factory import resolve_model
        from llm.train.dataset import load_training_data

        model = resolve_model(config.model)
        data = load_training_data(config.data, model)
    first = group.is_first
    for name, count in data.report.items() if first else ():
        _say(f"{name}: {count:,}")
    if args.dry_run:
        return _tell_what_to_expect(config, model, data)
    out = args.out or Path("out") / config.name
    keep_compiled_programs()
    with group.connected(out), ExitStack() as held:
        if first:
            with user_input():
                prepare_folder(out)
                held.enter_context(folder_lock(out))
            _refuse_to_overwrite(out, resume=args.resume)
        code = _train(config, model, data, out, first=first, resume=args.resume)
    if args.json and first and code == 0:
        last = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        sys.stdout.write(json.dumps({"out": str(out)} | json.loads(last)) + "\n")
    return code


def _tell_what_to_expect(config: TrainConfig, model: ResolvedModel, data: TrainingData) -> int:
    """Print the resolved configuration; steps, memory and time go to standard error."""
    import jax

    from llm.precision import computing_in
    from rpo.runtime.errors import user_input
    from rpo.runtime.output import duration

    with user_input(), computing_in(config.model.dtype):
        from llm.train.run_estimate import estimate_run

        found = estimate_run(config, model, data)
    _say(
        f"{len(data.train):,} pairs, {found.pairs_per_step} a step; {found.steps:,} steps of about "
        f"{found.tokens_per_step:,} tokens, {found.flops_per_step:.2g} FLOPs each\n"
        f"estimated: {found.peak_bytes_per_device / 2**30:.1f} GiB a device, "
        f"{duration(found.seconds)} on {jax.device_count()} {jax.default_backend().upper()} "
        "device(s); rpo plan compiles the step for a TPU slice"
    )
    sys.stdout.write(json.dumps(asdict(config), indent=1) + "\n")
    return 0


def _refuse_to_overwrite(out: Path, *, resume: bool) -> None:
    from rpo.runtime.errors import UsageError

    metrics = out / "metrics.jsonl"
    # A file without a line is of a run that failed before its first step was made.
    told = metrics.exists() and metrics.stat().st_size > 0
    saved = any(path.name.isdigit() for path in (out / "checkpoints").glob("*"))
    if (told or saved) and not resume:
        raise UsageError(
            f"{out}: a run is there already: continue with --resume, or choose another --out"
        )


def _train(
    config: TrainConfig,
    model: ResolvedModel,
    data: TrainingData,
    out: Path,
    *,
    first: bool,
    resume: bool,
) -> int:
    from llm.train.tracking import CompositeTracker, make_tracker
    from llm.train.trainer import InterruptedRunError, train
    from rpo.runtime.config_files import to_yaml
    from rpo.runtime.errors import user_input
    from rpo.runtime.progress import with_progress
    from rpo_io.atomic import write_atomic
    from rpo_io.paths import name_os_errors

    def watch(steps: Iterator[int], total: int) -> Iterator[int]:
        # Model and checkpoint are accepted: a run that is refused leaves the folder's own file.
        write_atomic(out / "config.yaml", to_yaml(config))
        return with_progress(steps, total, f"steps of {config.name}")

    with user_input(), name_os_errors(out):
        # All processes train; the first one tells.
        tracker = make_tracker(out / "metrics.jsonl", config) if first else CompositeTracker([])
        try:
            train(
                config,
                model,
                data,
                out,
                resume=resume,
                tracker=tracker,
                say=_say if first else lambda sentence: None,
                watch=watch if first else lambda steps, total: steps,
            )
        except InterruptedRunError as stopped:
            _say(str(stopped))
            return 143
    if first:
        _say(f"written to {out}: metrics.jsonl, checkpoints, config.yaml")
    return 0


def _say(text: str) -> None:
    from rpo.runtime.output import inert

    sys.stderr.write(inert(text) + "\n")
