"""Configuration of a training run, as YAML files have it. Names follow TRL and Transformers."""

from .data import DataConfig, DataSource
from .lora import LoraConfig, LoraShape
from .loss_inputs import PairInputs, RankingInputs
from .mesh import MeshConfig
from .model import LINEAR, DtypeName, ModelConfig
from .objective import ObjectiveConfig, ObjectiveConstants, PreferenceTerm
from .optimizer import OptimizerConfig, OptimizerName, ParameterGroup, SchedulerName
from .preference_losses import PREFERENCE_LOSSES, PreferenceLoss
from .run import TrainConfig
from .samples import SamplesConfig
from .schedule import ScheduleConfig, ScheduleKind
from .trainer import TrackerName, TrainerConfig

__all__ = [
    "LINEAR",
    "PREFERENCE_LOSSES",
    "DataConfig",
    "DataSource",
    "DtypeName",
    "LoraConfig",
    "LoraShape",
    "MeshConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "ObjectiveConstants",
    "OptimizerConfig",
    "OptimizerName",
    "PairInputs",
    "ParameterGroup",
    "PreferenceLoss",
    "PreferenceTerm",
    "RankingInputs",
    "SamplesConfig",
    "ScheduleConfig",
    "ScheduleKind",
    "SchedulerName",
    "TrackerName",
    "TrainConfig",
    "TrainerConfig",
]
