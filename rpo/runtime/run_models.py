"""Policies of training runs, which commands take in the place of a model's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rpo_io.bucket_paths import AnyPath, as_path

from .config_files import read_config
from .export_sources import describe_missing_step, find_export_tokenizer

if TYPE_CHECKING:
    from llm.config import MeshConfig, TrainConfig
    from llm.hf.factory import ResolvedModel
    from llm.models.decoder import Decoder


class RunModel(NamedTuple):
    """The policy of a training run, or of one of its checkpoints.

    Attributes:
        run: folder of the run.
        step: step of the checkpoint; None for the last one.
        config: configuration of the run.
    """

    run: AnyPath
    step: int | None
    config: TrainConfig

    def tokenizer_folder(self, given: str | None) -> Path | None:
        """Return the folder of the tokenizer: the given one, or that of the run; None for bytes."""
        return find_export_tokenizer(self.config, given)

    def template_options(self) -> dict[str, Any]:
        """Return the options with which the run wrote texts as tokens."""
        from llm.text.template_options import stored_template_options
        from llm.text.tokenizer import TokenizerOptions

        options = stored_template_options(TokenizerOptions.from_config(self.config.data))
        template = self.config.data.chat_template
        return options if template is None else {**options, "chat_template": template}

    def resolve(self, dtype: str) -> ResolvedModel:
        """Return the recorded architecture, with a dtype of parameters and computation."""
        from llm.train.policy import resolve_policy

        recorded = resolve_policy(self.run, self.step)
        config = replace(recorded.config, dtype=dtype, param_dtype=dtype)
        return replace(recorded, config=config)

    def load(self, dtype: str, mesh: MeshConfig | None) -> Decoder:
        """Restore the policy onto a mesh, each shard on the device that holds it.

        Args:
            dtype: dtype of the parameters and of the computation.
            mesh: how to shard the parameters over all devices; None for FSDP.

        Returns:
            The policy; LoRA adapters are not merged.

        Raises:
            ValueError: if there is no such checkpoint, or it is damaged.
        """
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from llm.train.policy import load_policy

        base = self.config.model.path
        decoder = load_policy(self.run, self.step, base_model=base, mesh=mesh).decoder
        decoder.dtype = jnp.dtype(dtype)
        state = nnx.state(decoder)
        nnx.update(decoder, jax.tree.map(lambda leaf: leaf.astype(dtype), state))
        return decoder


def find_run_model(model: str) -> RunModel | None:
    """Find the training run that a folder is, or whose checkpoint it is.

    Args:
        model: a folder, or anything else that a command takes as a model.

    Returns:
        The run; None if the folder is neither a run nor one of its checkpoints.

    Raises:
        ValueError: if the run has not kept the checkpoint, or its configuration is invalid.

    Examples:
        >>> find_run_model("owner/name") is None
        True
    """
    from llm.config import TrainConfig
    from llm.data.model_folder import CONFIG_NAME
    from llm.hf.folder_kinds import run_of
    from llm.train.checkpoint import kept_steps
    from rpo_io.locations import parse_location

    location = parse_location(model)
    if not (location.is_local or location.is_bucket):
        return None
    folder = as_path(model)
    if (folder / CONFIG_NAME).exists():
        return None
    found = run_of(folder)
    if found is None:
        return None
    run, step = found
    kept = kept_steps(run / "checkpoints")
    if step is not None and step not in kept:
        raise ValueError(f"{model}: {describe_missing_step(kept, step)}")
    return RunModel(run, step, read_config(str(run / "config.yaml"), TrainConfig))
