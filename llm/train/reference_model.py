"""A reference that is not the initial policy: found, checked, scored once, and freed.

A run may start from a DPO or RPO policy and keep the SFT model as its reference, as iterative
preference training does. The log-probabilities of the reference are computed before the policy is
placed on the devices, so that both models are never in memory together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from llm.config import ModelConfig, TrainConfig
from llm.data.model_folder import resolve_model_folder
from llm.hashing import weights_digest
from llm.hf.factory import ResolvedModel, build_model, resolve_model
from llm.hf.folder_kinds import is_adapter_folder, run_of
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.text.tokenizer_files import read_tokenizer
from rpo_io.bucket_paths import AnyPath, as_path
from rpo_io.digests import sha256_hex
from rpo_io.locations import parse_location

from .checkpoint import CheckpointRecord, Checkpoints
from .dataset import TrainingData
from .policy import load_policy, recorded_model
from .reference_cache import ReferenceCache
from .reference_check import check_given_reference
from .scorer import Scorer


class ResolvedReference(NamedTuple):
    """The model that ``model.reference`` names; its parameters are not read yet.

    Attributes:
        source: folder or hub name, as the configuration has it.
        model: the model, with its adapter if the folder is that of an adapter.
        run: folder of the training run whose policy the reference is; None for a model folder.
        record: record of the checkpoint of that run.
    """

    source: str
    model: ResolvedModel
    run: AnyPath | None = None
    record: CheckpointRecord | None = None

    @property
    def architecture(self) -> Architecture:
        """Architecture of the reference."""
        return self.model.architecture


class ReferenceScores(NamedTuple):
    """Log-probabilities of a reference that is not the initial policy.

    Attributes:
        digest: digest of all its parameters.
        cache: log-probabilities of all pairs that the run uses.
    """

    digest: str
    cache: ReferenceCache


def resolve_reference(config: TrainConfig, policy: ResolvedModel) -> ResolvedReference | None:
    """Find the model that ``model.reference`` names, and refuse one that does not fit the policy.

    Args:
        config: configuration of the run.
        policy: the model to train, resolved.

    Returns:
        The reference; None if it is the initial policy, or the objective needs none.

    Raises:
        ValueError: if there is no such model, it has another vocabulary than the policy, or fewer
            positions than ``data.max_length``.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig, TrainConfig
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> model = ModelConfig(architecture=sizes | {"num_attention_heads": 2})
        >>> config = TrainConfig(name="a", model=model, data=DataConfig(train="rows.jsonl"))
        >>> resolve_reference(config, resolve_model(model)) is None
        True
    """
    source = config.model.reference
    if source is None or not config.objective.needs_reference:
        return None
    try:
        reference = _find(source, config.model, policy)
        _check_sizes(reference.architecture, policy.architecture, config.data.max_length)
        if reference.run is None:
            _check_vocabulary(reference.model, policy, config.data.tokenizer)
    except ValueError as error:
        raise ValueError(f"`model.reference` {source}: {error}") from error
    return reference


def score_reference(
    reference: ResolvedReference,
    config: TrainConfig,
    data: TrainingData,
    path: AnyPath,
    *,
    tolerance: float,
) -> ReferenceScores:
    """Compute the log-probabilities of a reference, or load them from their cache.

    Args:
        reference: the resolved reference.
        config: configuration of the run.
        data: tokenized pairs of the run.
        path: file of the cache, local or in a bucket.
        tolerance: largest relative error of log-probabilities that the data rows hold.

    Returns:
        The log-probabilities and the digest of the model, whose memory is free again.

    Raises:
        ValueError: if the weights or the cache are damaged, the tokenizer of a run is another one,
            or a value of the rows is not that of this model.
    """
    record = reference.record
    if (
        record is not None
        and record.fingerprint["data"]["tokenizer"] != data.provenance["tokenizer"]
    ):
        raise ValueError(
            f"`model.reference` {reference.source}: the run was trained with another tokenizer "
            "than this one: its token ids have other meanings"
        )
    scorer = Scorer(config, data, _load(reference, config))
    digest = sha256_hex(weights_digest(scorer.parameters()) + weights_digest(scorer.frozen))
    cache = scorer.reference_of(path, digest)
    assert cache is not None
    check_given_reference(scorer, tolerance=tolerance, name=f"the reference {reference.source}")
    return ReferenceScores(digest, cache)


def _find(source: str, policy: ModelConfig, resolved: ResolvedModel) -> ResolvedReference:
    """Find the folder: a model, an adapter, a run or a checkpoint."""
    dtypes: dict[str, Any] = {"dtype": policy.dtype, "param_dtype": policy.param_dtype}
    is_bucket = parse_location(source).is_bucket
    folder = resolve_model_folder(source)
    if is_adapter_folder(folder):
        try:
            model = resolve_model(ModelConfig(adapter=source, **dtypes))
        except ValueError as error:
            if "`model.path` is missing" not in str(error) or resolved.folder is None:
                raise
            model = resolve_model(ModelConfig(adapter=source, path=resolved.config.path, **dtypes))
        return ResolvedReference(source, model)
    is_model = (folder / "config.json").exists()
    found = None if is_model else run_of(as_path(source) if is_bucket else folder)
    if found is None:
        return ResolvedReference(source, resolve_model(ModelConfig(path=source, **dtypes)))
    run, step = found
    checkpoints = Checkpoints(run / "checkpoints")
    if checkpoints.latest() is None:
        raise ValueError("the run has saved no checkpoint")
    record = checkpoints.find(step)
    config = ModelConfig(**record.fingerprint["configuration"]["model"])
    return ResolvedReference(source, recorded_model(config, record), run, record)


def _check_sizes(reference: Architecture, policy: Architecture, max_length: int) -> None:
    if reference.vocab_size != policy.vocab_size:
        raise ValueError(
            f"the reference must have the vocabulary of the policy, {policy.vocab_size} tokens, "
            f"got {reference.vocab_size}"
        )
    if reference.max_position_embeddings < max_length:
        raise ValueError(
            f"`data.max_length` must be at most {reference.max_position_embeddings}, the number of "
            f"positions of the reference, got {max_length}"
        )


def _check_vocabulary(
    reference: ResolvedModel, policy: ResolvedModel, tokenizer: str | None
) -> None:
    """Refuse a reference whose tokenizer gives a token another id than that of the policy."""
    source = policy.folder
    if tokenizer is not None:
        source = None if tokenizer == "bytes" else resolve_model_folder(tokenizer)
    folders = [folder for folder in (source, reference.folder) if folder is not None]
    paths = [folder / "tokenizer.json" for folder in folders]
    if len(paths) < 2 or not all(path.exists() for path in paths):
        return
    if paths[0].read_bytes() == paths[1].read_bytes():
        return
    ours, theirs = (read_tokenizer(folder).fast.get_vocab() for folder in folders)
    for token in sorted(ours.keys() | theirs.keys(), key=lambda each: ours.get(each, -1)):
        if ours.get(token) != theirs.get(token):
            raise ValueError(
                f"the reference must have the vocabulary of the tokenizer {folders[0]}: token "
                f"{token!r} has id {ours.get(token)} there and {theirs.get(token)} in {folders[1]}"
            )


def _load(reference: ResolvedReference, config: TrainConfig) -> Decoder:
    """Load the parameters on the mesh of the run, to compute in the dtype of the policy."""
    if reference.run is None or reference.record is None:
        return build_model(reference.model, config.mesh, max_length=config.data.max_length)
    policy = load_policy(reference.run, reference.record.step, mesh=config.mesh)
    policy.decoder.dtype = jnp.dtype(config.model.dtype)
    return policy.decoder
