"""The configuration of a training run, under the names that users of other trainers know."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rpo_theory.reductions import SftReduction

DtypeName = Literal["float32", "bfloat16", "float64"]


ObjectiveName = Literal["sft", "rpo", "dpo", "ipo", "dpop", "chi_po"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    r"""Which objective is minimised, and its constants.

    Attributes:
        method: ``"rpo"`` (DPO plus :math:`\eta\beta` times SFT, `liu:24`, eq. 4.8), ``"dpo"``,
            ``"ipo"``, ``"dpop"``, ``"chi_po"``, or ``"sft"`` alone.
        beta: :math:`\beta > 0`, weight of the KL term; all but ``"sft"`` and ``"ipo"`` train with
            it, and the metrics show rewards in its unit.
        eta: :math:`\eta \ge 0`, weight of the adversarial term. Only ``"rpo"`` trains with it; the
            adversarial value is measured with it under every method.
        sft_reduction: how the SFT loss is averaged: ``"sum"`` over the tokens of a response and
            mean over pairs (the theorem's), ``"sequence_mean"``, or ``"pooled_mean"``.
        label_smoothing: probability in [0, 1/2) that a label is flipped; ``"rpo"`` and ``"dpo"``.
        tau: regularisation of ``"ipo"``, positive.
        penalty: :math:`\lambda \ge 0` of ``"dpop"``.
        reward_max: :math:`R > 0` of ``"chi_po"``, whose margin is clipped at twice that.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> ObjectiveConfig(method="rpo", beta=0.1, eta=0.5).sft_weight
        0.05
    """

    method: ObjectiveName = "rpo"
    beta: float = 0.01
    eta: float = 0.005
    sft_reduction: SftReduction = "sum"
    label_smoothing: float = 0.0
    tau: float = 0.1
    penalty: float = 5.0
    reward_max: float = 1.0

    def __post_init__(self) -> None:
        """Refuse constants that no method can use."""
        for name, allowed in (("method", ObjectiveName), ("sft_reduction", SftReduction)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                names = ", ".join(repr(choice) for choice in get_args(allowed))
                raise ValueError(f"`{name}` must be one of {names}, got {value!r}")
        for name in ("beta", "tau", "reward_max"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {value}")
        for name in ("eta", "penalty"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"`{name}` must be 0 or more and finite, got {value}")
        smoothing = self.label_smoothing
        if not 0 <= smoothing < 0.5:
            raise ValueError(f"`label_smoothing` must be in [0, 0.5), got {smoothing}")
        if smoothing > 0 and self.method not in ("rpo", "dpo"):
            raise ValueError(
                f"`label_smoothing` must be 0 for method {self.method!r}, got {smoothing}: "
                "only 'rpo' and 'dpo' have it"
            )

    @property
    def sft_weight(self) -> float:
        r"""Factor of the SFT loss: :math:`\eta\beta` for RPO, 1 for SFT, 0 for the others."""
        return {"rpo": self.eta * self.beta, "sft": 1.0}.get(self.method, 0.0)

    @property
    def needs_reference(self) -> bool:
        """Whether the objective asks for reference log-probabilities.

        Examples:
            >>> [ObjectiveConfig(method=method).needs_reference for method in ("rpo", "sft")]
            [True, False]
        """
        return self.method != "sft"

    @property
    def preference_at_reference(self) -> float:
        r"""Exact preference loss of a policy that equals its reference: :math:`\log 2` for most.

        The loss of a run's first step is this plus :attr:`sft_weight` times its SFT loss.
        """
        if self.method == "sft":
            return 0.0
        return 0.25 / self.tau**2 if self.method == "ipo" else math.log(2.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained, and how it computes.

    Attributes:
        path: a folder or a name on the Hugging Face hub; None draws ``architecture`` at random.
        architecture: fields of :class:`llm.models.architecture.Architecture`.
        seed: of random parameters, and of adapters.
        dtype: to compute in; a product of float32 is one of float32 on every device.
        param_dtype: of the parameters.
        remat: what the backward pass computes again: ``none`` but norms and activations,
            ``dots`` keeps matrix products, ``full`` keeps only the layers' inputs.
        lora_r: rank of adapters; 0 trains all parameters.
        lora_alpha: adapters count ``lora_alpha / lora_r``.
        lora_target_modules: projections that have them; None for all.

    Raises:
        ValueError: a value out of range, or both or neither of path and architecture.
    """

    path: str | None = None
    architecture: dict[str, Any] | None = None
    seed: int = 0
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    lora_r: int = 0
    lora_alpha: float = 16.0
    lora_target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if (self.path is None) == (self.architecture is None):
            raise ValueError("`model.path` or `model.architecture` must be given, and one of them")
        _at_least("model.seed", self.seed, 0)
        _at_least("model.lora_r", self.lora_r, 0)
        _positive("model.lora_alpha", self.lora_alpha)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pairs are trained on, and how they become tokens.

    Attributes:
        train: a file of preference rows, JSONL, JSONL.gz or Parquet, or a data set on the hub.
        eval: another, for evaluation.
        eval_rows: without ``eval``: how many of the last rows of ``train`` are held out.
        tokenizer: a folder or hub name, or ``bytes``; None for the model's.
        max_length: most tokens of prompt and response together.
        max_prompt_length: most tokens of a prompt; None for those that the longest response of
            its row leaves of ``max_length``, or half of all if that is more.
        truncation_mode: whether a prompt that is too long keeps its end or its start.
        on_error: stop at a row that cannot be used, or skip and count it.
        layout: each response with its prompt in a row of its own, or the prompt of a pair once.

    Raises:
        ValueError: a value out of range.
    """

    train: str
    eval: str | None = None
    eval_rows: int = 0
    tokenizer: str | None = None
    max_length: int = 1024
    max_prompt_length: int | None = None
    truncation_mode: Literal["keep_end", "keep_start"] = "keep_end"
    on_error: Literal["raise", "skip"] = "raise"
    layout: Literal["separate", "shared"] = "shared"

    def __post_init__(self) -> None:
        """Refuse lengths that leave no response."""
        _at_least("data.eval_rows", self.eval_rows, 0)
        _at_least("data.max_length", self.max_length, 2)
        if self.max_prompt_length is not None:
            _at_least("data.max_prompt_length", self.max_prompt_length, 1)
            if self.max_prompt_length >= self.max_length:
                raise ValueError(
                    f"`data.max_prompt_length` must be less than `data.max_length` "
                    f"{self.max_length}, got {self.max_prompt_length}"
                )
        if self.eval is not None and self.eval_rows:
            raise ValueError("`data.eval_rows` must be 0 where `data.eval` is given")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
        learning_rate: at its peak.
        lr_scheduler_type: how it falls after the warm-up.
        warmup_ratio: share of the steps over which it rises from 0.
        max_grad_norm: gradients of a larger norm are scaled down to it.
        weight_decay: decoupled.
        adam_beta1: decay of the first moment.
        adam_beta2: decay of the second moment.
        adam_epsilon: added to the root of the second moment.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 5e-7
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse what no optimizer can use."""
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            _positive(f"optimizer.{name}", getattr(self, name))
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"`optimizer.{name}` must be in [0, 1), got {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"`optimizer.weight_decay` must be 0 or more, got {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long a run is, and what it leaves on the way.

    Attributes:
        max_steps: number of steps; None for ``num_train_epochs``.
        num_train_epochs: passes over the data.
        per_device_train_batch_size: pairs of a part of a step on each device; devices along
            ``mesh.tensor`` count as one.
        gradient_accumulation_steps: parts of a step.
        eval_steps: evaluate every so many steps and at the end; 0 never.
        coverage_samples: how many held-out prompts the policy answers at an evaluation, for the
            coverage of its replies by the data; 0 for none. Full fine-tuning keeps a copy of the
            first parameters for it.
        save_steps: save a checkpoint every so many steps; 0 only at the end.
        save_total_limit: checkpoints that are kept.
        logging_steps: log every so many steps.
        seed: of the order of the data.
        report_to: other places that metrics go to: ``tensorboard``, ``wandb``.
        step0_tolerance: how far the first loss may be from its exact value, relative; None for a
            measured value by dtype.

    Raises:
        ValueError: a value out of range.
    """

    max_steps: int | None = None
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    eval_steps: int = 0
    coverage_samples: int = 0
    save_steps: int = 0
    save_total_limit: int = 2
    logging_steps: int = 1
    seed: int = 0
    report_to: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    step0_tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuse counts that are none."""
        least = {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "eval_steps": 0,
            "coverage_samples": 0,
            "save_steps": 0,
            "save_total_limit": 1,
            "logging_steps": 1,
            "seed": 0,
        }
        for name, bound in least.items():
            _at_least(f"trainer.{name}", getattr(self, name), bound)
        if self.max_steps is not None:
            _at_least("trainer.max_steps", self.max_steps, 1)
        _positive("trainer.num_train_epochs", self.num_train_epochs)
        if self.step0_tolerance is not None:
            _positive("trainer.step0_tolerance", self.step0_tolerance)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices share the work; their numbers along the axes multiply to all there are.

    Attributes:
        data: with the same parameters and different pairs; None for 1.
        fsdp: with different pairs and a share of every parameter; None for all that are left.
        tensor: with the same pairs and a share of heads, hidden units and words.

    Raises:
        ValueError: a count below 1.
    """

    data: int | None = None
    fsdp: int | None = None
    tensor: int = 1

    def __post_init__(self) -> None:
        """Refuse counts that are none."""
        for name in ("data", "fsdp", "tensor"):
            value = getattr(self, name)
            if value is not None:
                _at_least(f"mesh.{name}", value, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        name: of the run; its folder carries it.
        model: which model.
        data: which pairs.
        objective: what is minimised.
        optimizer: how.
        trainer: how long, and what is left on the way.
        mesh: on which devices.

    Raises:
        ValueError: a name that cannot be a folder's.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Refuse a name that leads elsewhere."""
        if not self.name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"`name` must be of letters, digits, `_` and `-`, got {self.name!r}")


def _at_least(name: str, value: int, bound: int) -> None:
    if not bound <= value < 2**31:
        raise ValueError(
            f"`{name}` must be a whole number from {bound} to {2**31 - 1}, got {value}"
        )


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive and finite, got {value}")
