"""Configuration of a training run, as YAML files have it. Names follow TRL and Transformers."""

from .data import DataConfig, DataSource
from .mesh import MeshConfig
from .model import LINEAR, DtypeName, ModelConfig
from .objective import ObjectiveConfig, ObjectiveName
from .optimizer import OptimizerConfig, OptimizerName, ParameterGroup, SchedulerName
from .run import TrainConfig
from .trainer import TrackerName, TrainerConfig

__all__ = [
    "LINEAR",
    "DataConfig",
    "DataSource",
    "DtypeName",
    "MeshConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "ObjectiveName",
    "OptimizerConfig",
    "OptimizerName",
    "ParameterGroup",
    "SchedulerName",
    "TrackerName",
    "TrainConfig",
    "TrainerConfig",
]
