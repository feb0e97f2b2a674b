"""Where an export takes its dtype and its tokenizer files from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rpo_io.bucket_paths import AnyPath
from rpo_io.remote_errors import StoreError

if TYPE_CHECKING:
    from llm.config import TrainConfig

_logger = logging.getLogger(__name__)


def describe_missing_run(folder: AnyPath) -> str:
    """Return the error for a folder that is no run, with the run that it belongs to.

    Args:
        folder: a folder without ``config.yaml``.

    Returns:
        A message that names what to type, if the folder is a part of a run.

    Examples:
        >>> describe_missing_run(Path("out/run"))
        'out/run: no training run is there: it has no config.yaml'
    """
    message = f"{folder}: no training run is there: it has no config.yaml"
    for run in (folder.parent, folder.parent.parent):
        if (run / "config.yaml").is_file():
            step = f" --step {folder.name}" if folder.name.isdigit() else ""
            return f"{message}; the run is {run}: type `rpo export {run}{step} --out POLICY`"
    return message


def describe_missing_step(kept: Sequence[int], step: int) -> str:
    """Return the error for a step whose checkpoint is not kept, with the steps that are.

    Args:
        kept: steps of the checkpoints of the run.
        step: the step that was asked for.

    Returns:
        A message that names the kept steps.
    """
    names = ", ".join(map(str, kept)) or "none"
    return f"no checkpoint of step {step} is kept; the kept steps are {names}"


def find_export_tokenizer(config: TrainConfig, given: str | None) -> Path | None:
    """Return the folder of the tokenizer of a run.

    Args:
        config: configuration of the run.
        given: folder, hub name or ``"bytes"`` that takes the place of the run's tokenizer; None for
            the tokenizer of the run.

    Returns:
        The folder; None if the run has no tokenizer files.

    Raises:
        ValueError: if the folder is not there; the message names the key of the run.
    """
    from llm.data.model_folder import resolve_model_folder, resolve_tokenizer_folder
    from llm.hf.factory import base_path

    if given is not None:
        return resolve_tokenizer_folder(given)
    key, source = "data.tokenizer", config.data.tokenizer
    if source is None:
        key, source = "model.path", base_path(config.model)
    try:
        if key == "model.path":
            return None if source is None else resolve_model_folder(source)
        return resolve_tokenizer_folder(source or "bytes")
    except ValueError as error:
        raise ValueError(
            f"`{key}` of the run, which names its tokenizer: {error}; or give the folder of the "
            "tokenizer with --tokenizer"
        ) from error


def find_adapter_base(config: TrainConfig, folder: AnyPath) -> str | None:
    """Return the name of the base model that an exported adapter names.

    Args:
        config: configuration of the run.
        folder: folder of the run, for the message.

    Returns:
        Folder or hub name; None if the base weights were drawn at random.

    Raises:
        ValueError: if the run trained no adapter, or one of a model that has no folder.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig, TrainConfig
        >>> model, data = ModelConfig(path="hf://owner/name", lora_r=8), DataConfig(train="rows")
        >>> find_adapter_base(TrainConfig(name="a", model=model, data=data), Path("out/a"))
        'owner/name'
    """
    from llm.hf.factory import base_path
    from rpo_io.hub import parse_hub_name

    if not config.model.trains_adapter:
        raise ValueError(f"argument --adapter: {folder} trained all parameters: it has no adapter")
    if config.model.merge_adapter:
        raise ValueError(
            f"argument --adapter: the base of the adapter of {folder} is {config.model.path} with "
            "a merged adapter, which is no model that could be named: export the whole model"
        )
    base = base_path(config.model)
    repository = None if base is None or Path(base).is_dir() else parse_hub_name(base)
    return base if repository is None else repository.name


def find_export_template(config: TrainConfig, folder: Path | None) -> str | None:
    """Return the chat template of the run if it is not the one of the tokenizer's folder.

    Args:
        config: configuration of the run.
        folder: folder whose tokenizer files are copied; None if there are none.

    Returns:
        Jinja source code; None to keep the folder's own.

    Raises:
        ValueError: if the template file of the run is not there.
    """
    from llm.text.templates import replaced_template
    from llm.text.tokenizer import TokenizerOptions

    if folder is None:
        return None
    try:
        return replaced_template(folder, TokenizerOptions.from_config(config.data))
    except ValueError as error:
        raise ValueError(f"`data.chat_template` of the run: {error}") from error


def find_export_base(config: TrainConfig) -> Path | None:
    """Return the folder of the weights that a run began with; the export takes its dtype.

    Args:
        config: configuration of the run.

    Returns:
        The folder; None if the run began from random parameters or the weights are not there.
    """
    from llm.data.model_folder import resolve_model_folder
    from llm.hf.factory import base_path
    from llm.hf.io import stored_dtype

    source = config.model.path or config.model.adapter
    try:
        source = base_path(config.model)
        if source is None:
            return None
        folder = resolve_model_folder(source)
        if stored_dtype(folder) is not None:
            return folder
    except StoreError as error:
        if error.failure != "missing":
            raise  # a store that fails for a while must not change the dtype
    except ValueError:
        pass
    _logger.info(
        "%s is not there: the tensors get the dtype of the parameters, %s (see --dtype)",
        source,
        config.model.param_dtype,
    )
    return None
