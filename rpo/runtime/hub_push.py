"""Upload of an exported folder to the Hugging Face hub, which keeps model cards of the user."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm.hf.upload import UploadTarget

_logger = logging.getLogger(__name__)


def prepare_push(name: str, *, private: bool, revision: str | None) -> UploadTarget:
    """Create a repository on the hub, unless it exists; find out what the hub refuses.

    Args:
        name: ``OWNER/NAME``.
        private: whether the repository must be private.
        revision: branch; None for the default branch.

    Returns:
        The repository.

    Raises:
        ValueError: see :func:`llm.hf.upload.prepare_upload`; the message names the option.
    """
    from llm.hf.upload import prepare_upload

    try:
        return prepare_upload(name, private=private, revision=revision)
    except ValueError as error:
        raise ValueError(f"argument --push-to-hub: {error}") from error


def push_folder(folder: Path, target: UploadTarget, *, step: int) -> str:
    """Upload an exported folder in one commit.

    A model card in the repository that this package did not write stays there, which is logged.

    Args:
        folder: the folder.
        target: repository of :func:`prepare_push`.
        step: training step of the model, for the message of the commit.

    Returns:
        URL of the commit.

    Raises:
        ValueError: see :func:`llm.hf.upload.upload_folder`.
    """
    from llm.hf.upload import remote_text, upload_folder
    from llm.train.model_card import CARD_NAME, is_generated_card

    card, keep = remote_text(target, CARD_NAME), ()
    if card is not None and not is_generated_card(card):
        keep = (CARD_NAME,)
        _logger.warning("%s keeps its own %s: the new card is in %s", target.name, *keep, folder)
    return upload_folder(folder, target, message=f"Policy after step {step}", keep=keep)
