"""Configuration of a training run, as YAML files have it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .data import DataConfig
from .mesh import MeshConfig
from .model import ModelConfig
from .objective import ObjectiveConfig
from .optimizer import OptimizerConfig
from .trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Configuration of a training run.

    Attributes:
        name: name of the run and of its default folder.
        model: the model to train.
        data: the preference data.
        objective: the objective to minimize.
        optimizer: optimizer and learning rate.
        trainer: length, evaluations and checkpoints.
        mesh: the device mesh.

    Raises:
        ValueError: if the name cannot be the name of a folder, ``optimizer.bf16_rounding`` refuses
            the dtype of the parameters, or the objective has no reference that could move.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Check that the name is safe as the name of a folder."""
        if not self.name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(
                f"`name` must consist of letters, digits, `_` and `-`, got {self.name!r}"
            )
        if self.model.param_dtype == "bfloat16" and self.optimizer.bf16_rounding == "refuse":
            raise ValueError(
                "`model.param_dtype` must not be bfloat16 if `optimizer.bf16_rounding` is "
                "'refuse': rounding to nearest loses small updates: set `model.param_dtype` to "
                "float32, or `optimizer.bf16_rounding` to stochastic"
            )
        interval = self.model.reference_refresh_steps
        if interval is not None and not self.objective.needs_reference:
            raise ValueError(
                f"`model.reference_refresh_steps` must be left out, got {interval}: method "
                f"{self.objective.method!r} trains without a reference"
            )
