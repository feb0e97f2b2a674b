"""Configuration of a training run, as YAML files have it. Names follow TRL and Transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from rpo_theory.reductions import SftReduction

from .config_checks import at_least, one_of, path_or_architecture, positive, zero_or_positive

DtypeName = Literal["float32", "bfloat16", "float64"]
ObjectiveName = Literal["sft", "rpo", "dpo", "ipo", "dpop", "chi_po"]
SchedulerName = Literal["cosine", "linear", "constant", "constant_with_warmup"]
TrackerName = Literal["tensorboard", "wandb"]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Projections that can have an adapter."""
LARGEST_RANK = 2**16


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    r"""The training objective and its constants.

    Attributes:
        method: ``"rpo"`` (DPO plus :math:`\eta\beta` times SFT, `liu:24`, eq. 4.8), ``"dpo"``,
            ``"ipo"``, ``"dpop"``, ``"chi_po"`` or ``"sft"``.
        beta: weight :math:`\beta > 0` of the KL term. ``"sft"`` and ``"ipo"`` train without it;
            the metrics report rewards in its unit under every method.
        eta: weight :math:`\eta \ge 0` of the adversarial term. Only ``"rpo"`` trains with it; the
            adversarial value is measured with it under every method.
        sft_reduction: average of the SFT loss: ``"sum"`` over the tokens of a response and mean
            over pairs (as in the theorem), ``"sequence_mean"`` or ``"pooled_mean"``.
        label_smoothing: probability in [0, 1/2) that a label is flipped; ``"rpo"`` and ``"dpo"``.
        tau: regularization of ``"ipo"``, positive.
        penalty: weight :math:`\lambda \ge 0` of the penalty of ``"dpop"``.
        reward_max: bound :math:`R > 0` on rewards of ``"chi_po"``; margins are clipped at
            :math:`2R`.

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
        """Check the ranges."""
        one_of("objective.method", self.method, ObjectiveName)
        one_of("objective.sft_reduction", self.sft_reduction, SftReduction)
        for name in ("beta", "tau", "reward_max"):
            positive(f"objective.{name}", getattr(self, name))
        for name in ("eta", "penalty"):
            zero_or_positive(f"objective.{name}", getattr(self, name))
        smoothing = self.label_smoothing
        if not 0 <= smoothing < 0.5:
            raise ValueError(f"`objective.label_smoothing` must be in [0, 0.5), got {smoothing}")
        if smoothing > 0 and self.method not in ("rpo", "dpo"):
            raise ValueError(
                f"`objective.label_smoothing` must be 0 for method {self.method!r}, got "
                f"{smoothing}: only 'rpo' and 'dpo' have it"
            )

    @property
    def sft_weight(self) -> float:
        r"""Weight of the SFT loss: :math:`\eta\beta` for RPO, 1 for SFT, 0 for the others."""
        return {"rpo": self.eta * self.beta, "sft": 1.0}.get(self.method, 0.0)

    @property
    def needs_reference(self) -> bool:
        """Whether the objective uses log-probabilities of a reference.

        Examples:
            >>> [ObjectiveConfig(method=method).needs_reference for method in ("rpo", "sft")]
            [True, False]
        """
        return self.method != "sft"

    @property
    def preference_at_reference(self) -> float:
        r"""Exact preference loss of a policy equal to its reference: :math:`\log 2` for most.

        The loss of the first step of a run is this plus :attr:`sft_weight` times its SFT loss.
        """
        if self.method == "sft":
            return 0.0
        return 0.25 / self.tau**2 if self.method == "ipo" else math.log(2.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to train, its dtypes and its adapters.

    Attributes:
        path: local folder or name on the Hugging Face hub; None initializes ``architecture`` at
            random. Exactly one of ``path`` and ``architecture`` must be given.
        architecture: fields of :class:`llm.models.architecture.Architecture`.
        seed: seed of random parameters and of adapters.
        dtype: dtype of activations. With ``float32``, matrix products are full float32 products on
            every device.
        param_dtype: dtype of the parameters.
        remat: what the backward pass recomputes of each layer (rematerialization): ``none``
            recomputes only norms and activations, ``dots`` also all but matmul outputs, ``full``
            everything from the input of the layer.
        lora_r: rank of the LoRA adapters; 0 trains all parameters.
        lora_alpha: adapters are scaled by ``lora_alpha / lora_r``.
        lora_target_modules: names of the projections with an adapter, such as
            ``[q_proj, v_proj]``; ``all-linear``, as in PEFT, or None for all.

    Raises:
        ValueError: if a value is out of range, or not exactly one of ``path`` and
            ``architecture`` is given.
    """

    path: str | None = None
    architecture: dict[str, Any] | None = None
    seed: int = 0
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    lora_r: int = 0
    lora_alpha: float = 16.0
    lora_target_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        path_or_architecture(self.path, self.architecture)
        at_least("model.seed", self.seed, 0)
        at_least("model.lora_r", self.lora_r, 0)
        if self.lora_r > LARGEST_RANK:
            raise ValueError(f"`model.lora_r` must be at most {LARGEST_RANK}, got {self.lora_r}")
        positive("model.lora_alpha", self.lora_alpha)
        targets = self.lora_target_modules
        names = [targets] if targets == "all-linear" else targets
        if isinstance(names, str) or names == [] or set(names or ()) - {"all-linear", *LINEAR}:
            raise ValueError(
                f"`model.lora_target_modules` must be all-linear or a list of {', '.join(LINEAR)}, "
                f"such as [q_proj, v_proj], got {targets!r}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The preference data and their tokenization.

    Attributes:
        train: preference rows: a file (JSON lines, a JSON list, CSV, TSV, Parquet or Arrow), a
            folder of such files, a pattern such as ``shards/*.parquet``, a data set on the hub as
            ``owner/name[@revision][/subset][:split]``, or a list of these.
        eval: rows for evaluation, in the same forms; None for no evaluation file.
        eval_rows: number of rows at the end of ``train`` to hold out; 0 if ``eval`` is given.
        columns: name of the column for a field of a row, as in ``{prompt: question, chosen:
            preferred}``; the value ``ignore`` passes a column over, and the key ``"*"`` stands for
            all columns that are not named.
        tokenizer: folder or hub name, or ``bytes``; None for the tokenizer of the model.
        format: ``chat`` writes conversations with the chat template; ``text`` tokenizes prompt and
            response as raw text, for base models.
        chat_template: ``chatml``, or the path of a Jinja file; None for the template of the
            tokenizer's folder.
        chat_template_kwargs: variables of the chat template, such as ``enable_thinking: false``.
        template_date: date that the chat template reads as today, ``YYYY-MM-DD``. None for today
            (UTC) in a new run, which writes the date into its ``config.yaml``.
        special_tokens: ``refuse`` rows in whose text a control token stands, such as
            ``<|im_end|>``, or write it ``as_text``, with ordinary tokens.
        max_length: largest number of tokens of prompt and response together.
        max_prompt_length: largest number of tokens of a prompt. None leaves room for the longest
            response of the row, but at least half of ``max_length`` for the prompt.
        truncation_mode: which part of a prompt that is too long stays: its end or its start. Only
            contents of messages are cut, never what the chat template writes.
        on_overlong: ``truncate`` and count rows that are too long, ``skip`` and count them, or
            ``refuse`` them.
        on_error: stop at a row that cannot be used (``raise``), or skip and count it (``skip``).
        layout: ``separate`` repeats the prompt with each response; ``shared`` stores the prompt of
            a pair once.

    Raises:
        ValueError: if a value is out of range.
    """

    train: list[str] | str
    eval: list[str] | str | None = None
    eval_rows: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    format: Literal["chat", "text"] = "chat"
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    template_date: str | None = None
    special_tokens: Literal["refuse", "as_text"] = "refuse"
    max_length: int = 1024
    max_prompt_length: int | None = None
    truncation_mode: Literal["keep_end", "keep_start"] = "keep_end"
    on_overlong: Literal["truncate", "skip", "refuse"] = "truncate"
    on_error: Literal["raise", "skip"] = "raise"
    layout: Literal["separate", "shared"] = "shared"

    def __post_init__(self) -> None:
        """Check the ranges; a response must have room for a token."""
        at_least("data.eval_rows", self.eval_rows, 0)
        at_least("data.max_length", self.max_length, 2)
        if self.max_prompt_length is not None:
            at_least("data.max_prompt_length", self.max_prompt_length, 1)
            if self.max_prompt_length >= self.max_length:
                raise ValueError(
                    f"`data.max_prompt_length` must be less than `data.max_length` "
                    f"{self.max_length}, got {self.max_prompt_length}"
                )
        if self.eval is not None and self.eval_rows:
            raise ValueError("`data.eval_rows` must be 0 if `data.eval` is given")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, gradient clipping and the learning rate schedule.

    Attributes:
        learning_rate: peak of the schedule.
        lr_scheduler_type: shape of the schedule, as in ``transformers.get_scheduler``. ``cosine``
            and ``linear`` fall to 0 after the warm-up, ``constant_with_warmup`` stays at the
            peak. ``constant`` has no warm-up.
        warmup_ratio: share of the steps in which the rate rises linearly from 0, in [0, 1). The
            number of steps is rounded up.
        max_grad_norm: gradients with a larger global norm are scaled down to it.
        weight_decay: decoupled weight decay. As in Transformers, it does not apply to biases and
            to the weights of norms.
        adam_beta1: decay rate of the first moment.
        adam_beta2: decay rate of the second moment.
        adam_epsilon: added to the root of the second moment.
        bf16_rounding: what happens to updates if ``model.param_dtype`` is ``bfloat16``.
            ``stochastic`` computes them in float32 and rounds the result at random, up or down,
            so that updates below the resolution of bfloat16 are kept on average. ``refuse``
            trains no bfloat16 parameters.

    Raises:
        ValueError: if a value is out of range.
    """

    learning_rate: float = 5e-7
    lr_scheduler_type: SchedulerName = "cosine"
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    bf16_rounding: Literal["stochastic", "refuse"] = "stochastic"

    def __post_init__(self) -> None:
        """Check the ranges."""
        one_of("optimizer.lr_scheduler_type", self.lr_scheduler_type, SchedulerName)
        one_of("optimizer.bf16_rounding", self.bf16_rounding, Literal["stochastic", "refuse"])
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            positive(f"optimizer.{name}", getattr(self, name))
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"`optimizer.{name}` must be in [0, 1), got {value}")
        zero_or_positive("optimizer.weight_decay", self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Length of a run, its batches, evaluations, checkpoints and logs.

    Attributes:
        max_steps: number of steps; None for ``num_train_epochs``.
        num_train_epochs: number of passes over the data.
        per_device_train_batch_size: pairs of a microbatch on each device; devices along
            ``mesh.tensor`` count as one.
        gradient_accumulation_steps: microbatches of a step.
        dataloader_drop_last: leave the last step of an epoch out if it has fewer pairs than the
            others. By default it is made, as in Transformers, and its pairs count more.
        eval_steps: number of steps between evaluations, which also follow the last step; 0 for no
            evaluation.
        coverage_samples: number of held-out prompts that the policy answers at an evaluation, to
            measure how well the data cover its replies; 0 for none. Full fine-tuning keeps a copy
            of the initial parameters for it.
        save_steps: number of steps between checkpoints; 0 saves only at the end.
        save_total_limit: number of checkpoints to keep.
        logging_steps: number of steps between logged metrics.
        seed: seed of the order of the data.
        report_to: further trackers of metrics: ``tensorboard``, ``wandb``.
        step0_tolerance: largest relative error of the first loss; None for a measured value by
            dtype.

    Raises:
        ValueError: if a value is out of range.
    """

    max_steps: int | None = None
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    dataloader_drop_last: bool = False
    eval_steps: int = 0
    coverage_samples: int = 0
    save_steps: int = 0
    save_total_limit: int = 2
    logging_steps: int = 1
    seed: int = 0
    report_to: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    step0_tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
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
            at_least(f"trainer.{name}", getattr(self, name), bound)
        if self.max_steps is not None:
            at_least("trainer.max_steps", self.max_steps, 1)
        positive("trainer.num_train_epochs", self.num_train_epochs)
        if self.step0_tolerance is not None:
            positive("trainer.step0_tolerance", self.step0_tolerance)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the device mesh. Their product is the number of devices.

    Attributes:
        data: devices with the same parameters and different pairs; None for 1.
        fsdp: devices with different pairs and a shard of every parameter; None for all that are
            left.
        tensor: devices with the same pairs that share heads, hidden units and vocabulary.

    Raises:
        ValueError: if a size is below 1.
    """

    data: int | None = None
    fsdp: int | None = None
    tensor: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("data", "fsdp", "tensor"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"mesh.{name}", value, 1)


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
        ValueError: if the name cannot be the name of a folder, or ``optimizer.bf16_rounding``
            refuses the dtype of the parameters.
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
