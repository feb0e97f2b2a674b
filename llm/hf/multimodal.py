"""The images of a multi-modal model: kept aside in its folder, and written back on export.

Only the text model is trained. An export of it with the folder it came from has the configuration
and the tensors of the images of that folder, unchanged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm.config.lora import TEXT_PREFIX
from llm.data.model_folder import CONFIG_NAME, model_file, read_json_object
from llm.models.architecture import Architecture

from .config import from_hf_config
from .families import COMPOSITES
from .names import HEAD_NAME, stored_names
from .safetensors import SafetensorsReader

IMAGE_PARTS = ("vision_tower.", "vision_model.", "multi_modal_projector.")
"""Modules of the images, in the names of their tensors."""
MULTIMODAL_PREFIXES = ("model.language_model.", "language_model.model.")
"""Beginnings of the names of the text model's modules in a multi-modal model, now and before."""
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")


class MultimodalBase(NamedTuple):
    """The folder of a multi-modal model whose text model was trained.

    Attributes:
        folder: the folder.
        config: content of its ``config.json``.
        files: its open tensors.
        images: names of the tensors of the images.
    """

    folder: Path
    config: Mapping[str, Any]
    files: SafetensorsReader
    images: tuple[str, ...]

    def config_of(self, dtype: str) -> dict[str, Any]:
        """Return the content of ``config.json`` for text tensors of a dtype."""
        section = COMPOSITES[self.config["model_type"]].section
        text = dict(self.config[section])
        for key in ("dtype", "torch_dtype"):
            if key in text:
                text[key] = dtype
        kept = {key: value for key, value in self.config.items() if key != "torch_dtype"}
        return {**kept, section: text, "dtype": dtype}

    def with_images(
        self, sizes: Mapping[str, int], read: Callable[[str], np.ndarray]
    ) -> tuple[dict[str, int], Callable[[str], np.ndarray]]:
        """Add the tensors of the images to those of the text model, under the folder's names.

        Args:
            sizes: sizes of the text model's tensors in bytes.
            read: returns a tensor of the text model by name.

        Returns:
            The sizes of all tensors, and a function that returns each of them.
        """
        stored = stored_names(self.files.names(), [*sizes, HEAD_NAME])
        names = {stored[name]: name for name in sizes}
        all_sizes = {stored[name]: size for name, size in sizes.items()}
        all_sizes |= {name: self.files.read_unchecked(name).nbytes for name in self.images}

        def read_any(name: str) -> np.ndarray:
            return read(names[name]) if name in names else self.files.read_unchecked(name)

        return all_sizes, read_any

    def copy_files(self, folder: Path) -> None:
        """Copy the settings of the images' preprocessing to another folder."""
        for name in IMAGE_FILES:
            if (self.folder / name).exists():
                shutil.copyfile(model_file(self.folder, name), folder / name)


@contextmanager
def multimodal_base(
    folder: Path | None, architecture: Architecture
) -> Iterator[MultimodalBase | None]:
    """Open the folder of a multi-modal model.

    Args:
        folder: folder of the weights before training; None for none.
        architecture: architecture of the text model.

    Yields:
        The folder's images; None if the folder holds no multi-modal model with this text model.

    Raises:
        ValueError: if the folder cannot be read.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> with multimodal_base(None, Architecture(**sizes, num_attention_heads=2)) as base:
        ...     base is None
        True
    """
    if folder is None or not (folder / CONFIG_NAME).exists():
        yield None
        return
    config = read_json_object(folder, CONFIG_NAME)
    if config.get("model_type") not in COMPOSITES or from_hf_config(config) != architecture:
        yield None
        return
    with SafetensorsReader(folder) as files:
        images = tuple(sorted(filter(is_image_tensor, files.names())))
        yield MultimodalBase(folder, config, files, images)


def module_prefix(folder: Path | None) -> str:
    """Return the beginning of the names of the text model's modules in the class of a model.

    Args:
        folder: folder of the model; None for a text model without a folder.

    Returns:
        ``model.``, or ``model.language_model.`` for a multi-modal model.

    Examples:
        >>> module_prefix(None)
        'model.'
    """
    if folder is None or read_json_object(folder, CONFIG_NAME).get("model_type") not in COMPOSITES:
        return TEXT_PREFIX
    return MULTIMODAL_PREFIXES[0]


def is_image_tensor(name: str) -> bool:
    """Return whether a tensor of a multi-modal model belongs to its images.

    Args:
        name: name of the tensor.

    Returns:
        True for the image model and the projection of its outputs.

    Examples:
        >>> is_image_tensor("model.vision_tower.ln_pre.weight")
        True
    """
    return any(part in name for part in IMAGE_PARTS)
