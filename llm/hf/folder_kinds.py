"""Folders that are given as a model but are something else: adapters, runs and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.data.model_folder import ADAPTER_CONFIG_NAME, CONFIG_NAME, read_json_object

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
    # The folder of a run has its checkpoints in `checkpoints/STEP`.
    for run in (folder, folder.parent, folder.parent.parent):
        if (run / RUN_CONFIG_NAME).is_file() and (run == folder or run in _runs_of(folder)):
            step = f" --step {folder.name}" if folder.name.isdigit() else ""
            raise ValueError(
                f"{folder} is a training run, not a model: write its policy as a model first, with "
                f"`rpo export {run}{step} --out POLICY`, and give POLICY"
            )
    nested = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_NAME}"))
    hint = f": is it {folder / nested[-1]}?" if nested else ""
    raise ValueError(f"{folder / CONFIG_NAME} is missing{hint}")


def _runs_of(folder: Path) -> tuple[Path, ...]:
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
        f'{folder} {what} ({ADAPTER_CONFIG_NAME}): merge it first, with `python -c "from peft '
        f"import AutoPeftModelForCausalLM as M; M.from_pretrained('{folder}').merge_and_unload()"
        ".save_pretrained('MERGED')\"`, copy the tokenizer's files there, and give MERGED"
    )
