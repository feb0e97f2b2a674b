"""Folders that are given as a model but are something else: adapters, runs and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.data.model_folder import ADAPTER_CONFIG_NAME, CONFIG_NAME, read_json_object
from rpo_io.bucket_paths import AnyPath

RUN_CONFIG_NAME = "config.yaml"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that is not the folder of a whole model, and say what to do.

    Args:
        folder: an existing folder.

    Raises:
        ValueError: if the folder holds a PEFT adapter, a training run or its checkpoints, or has no
            ``config.json``.

    Examples:
        >>> check_model_folder(Path("out/run"))  # doctest: +SKIP
        Traceback (most recent call last):
        ValueError: out/run is a training run, not a model: write its policy as a model first, ...
    """
    if (folder / ADAPTER_CONFIG_NAME).exists() or any(
        (folder / name).exists() for name in ADAPTER_WEIGHTS
    ):
        raise ValueError(_adapter_message(folder))
    if (folder / CONFIG_NAME).exists():
        return
    found = run_of(folder)
    if found is not None:
        run, step = found
        option = "" if step is None else f" --step {step}"
        raise ValueError(
            f"{folder} is a training run, not a model: write its policy as a model first, with "
            f"`rpo export {run}{option} --out POLICY`, and give POLICY"
        )
    nested = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
    hint = f": is it {folder / nested[-1]}?" if nested else ""
    raise ValueError(f"{folder / CONFIG_NAME} is missing{hint}")


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder is that of a PEFT adapter, without a model beside it.

    Args:
        folder: an existing folder.

    Examples:
        >>> is_adapter_folder(Path("model"))
        False
    """
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).exists()


def run_of(folder: AnyPath) -> tuple[AnyPath, int | None] | None:
    """Return the training run that a folder is, or that its checkpoints belong to.

    Args:
        folder: a run, its folder ``checkpoints``, or a checkpoint in it, local or in a bucket.

    Returns:
        Folder of the run and step of the checkpoint, which is None for the last one; None if the
        folder belongs to no run.

    Examples:
        >>> run_of(Path("model")) is None
        True
    """
    for run in (folder, *_runs_of(folder)):
        if (run / RUN_CONFIG_NAME).is_file():
            return run, int(folder.name) if folder != run and folder.name.isdigit() else None
    return None


def _runs_of(folder: AnyPath) -> tuple[AnyPath, ...]:
    """Return the run of a folder of checkpoints, or of one of them, by their names."""
    if folder.name == "checkpoints":
        return (folder.parent,)
    return (folder.parent.parent,) if folder.parent.name == "checkpoints" else ()


def _adapter_message(folder: Path) -> str:
    settings: dict[str, Any] = {}
    if (folder / ADAPTER_CONFIG_NAME).exists():
        settings = read_json_object(folder, ADAPTER_CONFIG_NAME)
    base = settings.get("base_model_name_or_path")
    of_base = f" of {base}" if isinstance(base, str) and base else ""
    where = "holds a PEFT adapter beside a model" if (folder / CONFIG_NAME).exists() else ""
    what = where or f"is a PEFT adapter{of_base}, not a model"
    return (
        f"{folder} {what} ({ADAPTER_CONFIG_NAME}): give the base model as `model.path`, and the "
        "folder of the adapter as `model.adapter`"
    )
