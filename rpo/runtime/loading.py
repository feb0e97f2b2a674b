"""Models, tokenizers and preference data of the commands, checked against one another."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rpo_io.staging import shown_text

from .errors import UsageError, check_whole_number
from .run_models import find_run_model

if TYPE_CHECKING:
    from llm.config import MeshConfig
    from llm.data.pair_table import PairTable
    from llm.hf.factory import ResolvedModel
    from llm.models.decoder import Decoder
    from llm.parallel.mesh import Devices
    from llm.text.tokenizer import Tokenizer, TokenizerOptions

DEFAULT_MAX_LENGTH = 1024
"""Default limit of prompt and response together, in tokens."""
PAIRS, PROMPTS = 8, 32
"""Default numbers of pairs and of prompts that are computed together."""
DTYPES = ("float32", "bfloat16", "float64")
"""Dtypes of parameters and computation."""
_OPTIONS = {
    "chat_template_kwargs": "--chat-template-kwargs",
    "chat_template": "--chat-template",
    "template_date": "--template-date",
    "special_tokens": "--special-tokens",
    "format": "--data-format",
    "columns": "--columns",
    "max_length": "--max-length",
}
_KEY = re.compile(rf"\bdata\.({'|'.join(_OPTIONS)})\b(: )?")
_MAPPING = re.compile(r"`data\.columns: (\{[^`]*\})`")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How a model, its tokenizer and preference data are read.

    Attributes:
        tokenizer: folder, name on the hub or ``"bytes"``; None for that of the model.
        dtype: dtype of the parameters and of the computation.
        batch_size: number of pairs or prompts that are computed together, on all devices; None for
            :data:`PAIRS` or :data:`PROMPTS`.
        chat_template: ``"chatml"`` or a template file; None for that of the tokenizer.
        chat_template_kwargs: variables of the chat template.
        template_date: date that the template reads as today; None for today.
        special_tokens: ``"refuse"`` or ``"as_text"``, for control tokens in contents.
        data_format: ``"chat"``, or ``"text"`` without a template. For each of the last four
            options, None stands for the value in the training run of the model, or else for the
            first value that is named here.
        columns: name of the column for a field of a row, or ``"ignore"``.
        max_length: limit of prompt and response together, in tokens; None for 1024 or the model's
            limit, whichever is smaller.
        skip_bad_rows: skip and count unusable rows instead of refusing them.
        mesh: how models are sharded over all devices; None for FSDP.

    Raises:
        UsageError: if a value is out of range.
    """

    tokenizer: str | None = None
    dtype: str = "float32"
    batch_size: int | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_date: str | None = None
    special_tokens: str | None = None
    data_format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    skip_bad_rows: bool = False
    mesh: MeshConfig | None = None

    def __post_init__(self) -> None:
        """Check the numbers and the dtype; the rest is checked where it is used."""
        check_whole_number("batch_size", self.batch_size, 1)
        check_whole_number("max_length", self.max_length, 2)
        check_dtype(self.dtype)

    def tokenizer_options(self, stored: Mapping[str, Any]) -> TokenizerOptions:
        """Return the options of the tokenizer.

        Args:
            stored: options of the training run that exported the model, which apply where none
                are given.

        Raises:
            ValueError: if a value is invalid.
        """
        from llm.text.tokenizer import TokenizerOptions

        given = {
            "chat_template": self.chat_template,
            "chat_template_kwargs": self.chat_template_kwargs or None,
            "template_date": self.template_date,
            "special_tokens": self.special_tokens,
            "format": self.data_format,
        }
        values = {name: value for name, value in given.items() if value is not None}
        unfit: tuple[str, ...] = ()
        if self.chat_template is not None:  # another template has other variables
            unfit = ("chat_template_kwargs", "format")
        elif self.data_format == "text":
            unfit = ("chat_template_kwargs", "template_date")
        kept = {name: value for name, value in stored.items() if name not in unfit}
        return TokenizerOptions(**{**kept, **values})

    def input_files(self) -> list[str]:
        """Return the files and folders that the options name."""
        return [name for name in (self.tokenizer, self.chat_template) if name is not None]


class LoadedModel(NamedTuple):
    """A model with its tokenizer.

    Attributes:
        decoder: the model.
        tokenizer: its tokenizer.
        folder: local folder of the model, or of its adapter if that has a tokenizer; of a run, the
            folder of its tokenizer, or that of the run; None for a run in a bucket on bytes.
        raw_text: whether texts are written without a template.
        notes: what the two folders hold that is not used, as sentences.
        devices: mesh that the model is sharded over.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    folder: Path | None
    raw_text: bool
    notes: tuple[str, ...]
    devices: Devices


class TokenizedData(NamedTuple):
    """Preference data as tokens.

    Attributes:
        pairs: the pairs, at least one.
        report: number of rows that were read, skipped and cut, by name.
        notes: columns and texts that were passed over or changed, as sentences.
    """

    pairs: PairTable
    report: dict[str, int]
    notes: tuple[str, ...]


def check_dtype(dtype: str | None) -> None:
    """Refuse a dtype that models do not support.

    Args:
        dtype: name of the dtype; None is accepted.

    Raises:
        UsageError: if the dtype is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        names = ", ".join(repr(name) for name in DTYPES)
        raise UsageError(f"`dtype` must be one of {names}, got {dtype!r}")


def check_meshes(models: Iterable[str], options: LoadingOptions) -> None:
    """Refuse a mesh that does not fit the devices or a model; no parameter is read.

    Args:
        models: models, as :func:`load_model_and_tokenizer` takes them.
        options: the mesh and the dtype.

    Raises:
        ValueError: if there is no such model, or the mesh does not fit.
    """
    from llm.hf.factory import abstract_model
    from llm.parallel.mesh import make_devices

    for model in models:
        make_devices(_mesh(options), abstract_model(_resolve(model, options)[0]))


def _mesh(options: LoadingOptions) -> MeshConfig:
    from llm.config import MeshConfig

    return MeshConfig() if options.mesh is None else options.mesh


def _resolve(model: str, options: LoadingOptions) -> tuple[ResolvedModel, Path | None]:
    """Return a resolved model, and the folder whose tokenizer it has by default."""
    from llm.config import ModelConfig
    from llm.data.model_folder import resolve_model_folder
    from llm.hf.factory import resolve_model
    from llm.hf.folder_kinds import is_adapter_folder

    run = find_run_model(model)
    if run is not None:
        return run.resolve(options.dtype), None
    folder = resolve_model_folder(model)
    is_adapter = is_adapter_folder(folder)
    fields: dict[str, Any] = {"dtype": options.dtype, "param_dtype": options.dtype}
    fields["adapter" if is_adapter else "path"] = model
    resolved = resolve_model(ModelConfig(**fields))
    if is_adapter and resolved.folder is not None and not (folder / "tokenizer.json").exists():
        folder = resolved.folder
    return resolved, folder


def load_model_and_tokenizer(model: str, options: LoadingOptions) -> LoadedModel:
    """Load a model onto the mesh, each shard on the device that holds it, and its tokenizer.

    Args:
        model: Hugging Face folder, name on the hub, folder of a PEFT adapter, folder of a training
            run, or one of its checkpoints.
        options: the tokenizer, its template, the dtype and the mesh.

    Returns:
        Model and tokenizer.

    Raises:
        ValueError: if one of them is missing or damaged, the tokenizer writes tokens that the model
            does not embed, or the mesh does not divide the devices or the heads.
    """
    from llm.data.model_folder import resolve_tokenizer_folder
    from llm.hf.factory import abstract_model, build_model
    from llm.parallel.mesh import make_devices
    from llm.text.template_options import read_template_options
    from llm.text.tokenizer import check_vocab_size, load_tokenizer

    run = find_run_model(model)
    resolved, folder = _resolve(model, options)
    devices = make_devices(_mesh(options), abstract_model(resolved))
    other = options.tokenizer
    if run is not None:
        tokenizer_folder = run.tokenizer_folder(other)
        folder = tokenizer_folder or (run.run if isinstance(run.run, Path) else None)
    else:
        tokenizer_folder = folder if other is None else resolve_tokenizer_folder(other)
    if run is not None and other is None:
        stored = run.template_options()
    else:
        stored = {} if tokenizer_folder is None else read_template_options(tokenizer_folder)
    tokenizer_options = options.tokenizer_options(stored)
    try:
        with naming_options():
            tokenizer = load_tokenizer(tokenizer_folder, tokenizer_options)
    except ValueError as error:
        if not str(error).endswith("tokenizer.json is missing"):
            raise
        raise ValueError(
            f"{error}: give the folder of the model's tokenizer with --tokenizer, or bytes if the "
            "model was trained on byte tokens"
        ) from error
    vocab_size = resolved.architecture.vocab_size
    check_vocab_size(tokenizer, vocab_size, other or model)
    if run is not None:
        decoder = run.load(options.dtype, options.mesh)
    else:
        decoder = build_model(resolved, _mesh(options))
    notes = [*(f"{model}: {note}" for note in resolved.notes), *tokenizer.notes]
    used = {name: getattr(tokenizer_options, name) for name in stored}
    used = {name: value for name, value in used.items() if value == stored[name]}
    if used:
        shown = ", ".join(f"`{name}` {value}" for name, value in used.items())
        source = tokenizer_folder if run is None else run.run
        notes.append(f"{source}: options of the training run are used: {shown}")
    if tokenizer.template_date is not None and tokenizer_options.template_date is None:
        notes.append(
            f"the chat template writes today's date, {tokenizer.template_date}: give it with "
            "--template-date to repeat these numbers on another day"
        )
    is_raw = tokenizer_options.format == "text"
    return LoadedModel(decoder, tokenizer, folder, is_raw, tuple(notes), devices)


def read_pairs(data: str, model: LoadedModel, options: LoadingOptions) -> TokenizedData:
    """Read and tokenize preference data.

    Args:
        data: file of preference rows, or a data set on the hub.
        model: the model that will read them.
        options: columns, limits and the treatment of bad rows.

    Returns:
        The pairs, with counts of rows that were skipped and cut.

    Raises:
        ValueError: if a row is unusable (the message names file, line and field), no row remains,
            or ``max_length`` exceeds the model's limit.
        OSError: if the file cannot be read.
    """
    import numpy as np

    from llm.data.preferences import stream_preferences
    from llm.text.tokenize import tokenize_rows

    architecture = model.decoder.architecture
    limit, given = architecture.max_position_embeddings, options.max_length
    length = min(DEFAULT_MAX_LENGTH, limit) if given is None else given
    if length > limit:
        raise ValueError(
            f"argument --max-length: the model reads at most {limit} tokens, got {length}"
        )
    notes: list[str] = []
    with naming_options():
        rows = stream_preferences(
            data,
            check_content=False,
            columns=options.columns,
            raw_text=model.raw_text,
            notes=notes,
        )
        tokenized = tokenize_rows(
            rows,
            model.tokenizer,
            max_length=length,
            on_error="skip" if options.skip_bad_rows else "raise",
            vocab_size=architecture.vocab_size,
        )
    if not tokenized.pairs:
        raise ValueError(f"{data}: must have at least one usable row, got none")
    n_baselines = int((tokenized.pairs.lengths[:, -1] > 0).sum())
    n_references = int((~np.isnan(tokenized.pairs.reference[:, 0])).sum())
    for count, what in (
        (n_baselines, "with a baseline response, which is not scored"),
        (n_references, "with reference log-probabilities, which are not used"),
    ):
        if count:
            notes.append(f"rows {what}: {count:,}")
    return TokenizedData(
        tokenized.pairs, tokenized.report, tuple(f"{data}: {note}" for note in notes)
    )


@contextmanager
def naming_options() -> Iterator[None]:
    """Name the options of the command, instead of keys of a configuration, in errors of a block.

    Raises:
        ValueError: the error of the block, with the changed message.

    Examples:
        >>> with naming_options():
        ...     raise ValueError("a.jsonl:1: set `data.format` to text")
        Traceback (most recent call last):
        ValueError: a.jsonl:1: set `--data-format` to text
    """
    try:
        yield
    except ValueError as error:
        message = str(error).replace("`special_tokens: as_text`", "`--special-tokens as_text`")
        message = _MAPPING.sub(r"`--columns '\1'`", message)
        message = _KEY.sub(lambda match: _OPTIONS[match[1]] + (" " if match[2] else ""), message)
        if message == str(error):
            raise
        raise ValueError(message) from error


def log_report(report: Mapping[str, int], notes: Iterable[str]) -> tuple[str, ...]:
    """Log the counts of rows that were not used as they are, and every note once.

    Args:
        report: counts by name; zeros and the number of ``rows`` are not logged.
        notes: sentences, some of which may be equal.

    Returns:
        The distinct notes, in order.
    """
    for name, count in report.items():
        if count and name != "rows":
            _logger.info("%s: %s", name, f"{count:,}")
    distinct = tuple(dict.fromkeys(map(shown_text, notes)))
    for note in distinct:
        _logger.info("%s", note)
    return distinct
