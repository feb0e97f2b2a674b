"""Write the policy of a training run as a Hugging Face folder that transformers loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from .score import DTYPES

EXAMPLES = (
    "rpo export out/run --out policy",
    "rpo export out/run --step 300 --dtype bfloat16 --out policy",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from rpo.runtime.errors import whole_number

    parser.add_argument("run", type=Path, metavar="RUN", help="folder that rpo train wrote")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder that is new or empty"
    )
    parser.add_argument(
        "--step", type=whole_number(1), metavar="N", help="which checkpoint (default: the last)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the tensors (default: that of the parameters)"
    )


def run(args: argparse.Namespace) -> int:
    """Restore the checkpoint, merge adapters, write the folder."""
    from rpo.runtime.config_files import read_config
    from rpo.runtime.errors import user_input
    from rpo.runtime.output import tell

    with user_input():
        if not (args.run / "config.yaml").is_file():
            raise ValueError(f"{args.run}: no training run is there: it has no config.yaml")
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise ValueError(f"argument --out: {args.out} exists already and is not empty")
        from llm.config import TrainConfig
        from llm.data.model_folder import resolve_tokenizer_folder
        from llm.hf.factory import build_model, resolve_model
        from llm.hf.io import export_model
        from llm.precision import computing_in
        from llm.train.checkpoint import Checkpoints
        from llm.train.dataset import load_training_data
        from llm.train.run import Run

        config = read_config(args.run / "config.yaml", TrainConfig)
        keep = config.trainer.save_total_limit
        with computing_in(config.model.dtype):
            # A checkpoint is of its data too: both are read again, and must be the same.
            model = resolve_model(config.model)
            trained = Run(
                config,
                load_training_data(config.data, model),
                build_model(model, config.mesh),
            )
            checkpoints = Checkpoints(args.run / "checkpoints", keep, trained.fingerprint())
            if checkpoints.latest() is None:
                raise ValueError(f"{args.run}: the run has saved no checkpoint")
            if args.step is not None and not (checkpoints.folder / str(args.step)).is_dir():
                raise ValueError(f"argument --step: no checkpoint of step {args.step} is kept")
            step, trained.state, _ = checkpoints.restore(trained.state, args.step)
            tokenizer = config.data.tokenizer
            export_model(
                trained.model(),
                args.out,
                tokenizer_folder=(
                    model.folder if tokenizer is None else resolve_tokenizer_folder(tokenizer)
                ),
                dtype=args.dtype,
            )
    text = f"written to {args.out}: the policy after step {step}\n"
    tell(args, {"out": str(args.out), "step": step}, text)
    return 0
