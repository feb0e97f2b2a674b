"""The model to train, its dtypes, its adapters and its reference."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from .checks import at_least, one_of, path_or_architecture, positive
from .lora import ALL_LINEAR, LARGEST_RANK, LoraConfig

DtypeName = Literal["float32", "bfloat16", "float64"]
QuantizationName = Literal["int8", "nf4"]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Projections that can have an adapter."""
TABLE_MODULES = ("embed_tokens", "lm_head")
"""Embedding and output head, which ``all-linear`` leaves out."""
LORA_KEYS = (
    "lora_alpha",
    "lora_target_modules",
    "lora_dropout",
    "use_rslora",
    "lora_modules_to_save",
    "lora_layers_to_transform",
    "lora_rank_pattern",
    "lora_alpha_pattern",
)
"""Keys that describe new adapters, besides ``lora_r``."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    r"""The model to train, its dtypes, its adapters and its reference.

    Attributes:
        path: folder, local or in a bucket, or name on the Hugging Face hub; None initializes
            ``architecture`` at random, or takes the base model that ``adapter`` names, if that is
            a local folder. At most one of ``path`` and ``architecture`` may be given.
        architecture: fields of :class:`llm.models.architecture.Architecture`.
        seed: seed of random parameters and of adapters.
        dtype: dtype of activations. With ``float32``, matrix products are full float32 products on
            every device.
        param_dtype: dtype of the parameters.
        base_dtype: dtype of the weights that are frozen while adapters are trained, such as
            ``bfloat16``; None for ``param_dtype``.
        quantization: how the projections of the layers are kept while adapters are trained (QLoRA):
            ``int8`` or ``nf4``, in blocks of 64 inputs with one scale. Embeddings, output head,
            norms, biases, routers and modules of ``lora_modules_to_save`` are not quantized. None
            keeps all weights in ``base_dtype``.
        remat: what the backward pass recomputes of each layer (rematerialization): ``none``
            recomputes only norms and activations, ``dots`` also all but matmul outputs, ``full``
            everything from the input of the layer.
        adapter: folder of a PEFT adapter whose training continues, with its rank, scale, dropout
            and modules; None for no such folder.
        merge_adapter: whether ``adapter`` is merged into the weights before training. Then all
            parameters are trained, or new adapters of rank ``lora_r``.
        reference: model that is the reference of the objective: a model folder, a name on the
            hub, a PEFT adapter, or a training run or one of its checkpoints. None for the initial
            policy.
        reference_refresh_steps: number of steps after which the reference moves to the current
            policy, again and again (TR-DPO); None for a reference that does not move. Its weights
            are in memory during training.
        reference_decay: share in [0, 1) of the old reference that stays when it moves; 0 replaces
            it, 0.99 every step is an exponential average of the policies.
        lora_r: rank of new LoRA adapters; 0 for none.
        lora_alpha: adapters are scaled by ``lora_alpha / lora_r``.
        lora_target_modules: names of the projections with an adapter, such as
            ``[q_proj, v_proj]``; ``all-linear``, as in PEFT, or None for all; any other text is a
            regular expression of whole names, such as ``.*layers\.[01]\..*_proj``.
        lora_dropout: share in [0, 1) of the inputs of an adapter that training sets to 0.
        use_rslora: scale adapters by ``lora_alpha / sqrt(lora_r)`` instead.
        lora_modules_to_save: modules that are trained whole and saved with the adapters, such as
            ``[embed_tokens, lm_head]``.
        lora_layers_to_transform: indices of the layers with adapters; None for all.
        lora_rank_pattern: other ranks by the end of a module's name, as in PEFT.
        lora_alpha_pattern: other values of ``lora_alpha`` in the same way.

    Raises:
        ValueError: if a value is out of range, none of ``path``, ``architecture`` and ``adapter``
            is given, or two keys exclude each other.
    """

    path: str | None = None
    architecture: dict[str, Any] | None = None
    seed: int = 0
    dtype: DtypeName = "float32"
    param_dtype: DtypeName = "float32"
    base_dtype: DtypeName | None = None
    quantization: QuantizationName | None = None
    remat: Literal["none", "dots", "full"] = "none"
    adapter: str | None = None
    merge_adapter: bool = False
    reference: str | None = None
    reference_refresh_steps: int | None = None
    reference_decay: float = 0.0
    lora_r: int = 0
    lora_alpha: float = 16.0
    lora_target_modules: list[str] | str | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    lora_modules_to_save: list[str] | None = None
    lora_layers_to_transform: list[int] | None = None
    lora_rank_pattern: dict[str, int] | None = None
    lora_alpha_pattern: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and that the keys fit together."""
        if self.adapter is None or (self.path is not None and self.architecture is not None):
            path_or_architecture(self.path, self.architecture)
        at_least("model.seed", self.seed, 0)
        at_least("model.lora_r", self.lora_r, 0)
        if self.lora_r > LARGEST_RANK:
            raise ValueError(f"`model.lora_r` must be at most {LARGEST_RANK}, got {self.lora_r}")
        positive("model.lora_alpha", self.lora_alpha)
        targets = self.lora_target_modules
        is_list = targets is not None and not isinstance(targets, str)
        if targets in ("", *LINEAR) or (
            is_list and (not targets or set(targets) - {ALL_LINEAR, *LINEAR, *TABLE_MODULES})
        ):
            raise ValueError(
                f"`model.lora_target_modules` must be all-linear, a list of {', '.join(LINEAR)}, "
                f"{' and '.join(TABLE_MODULES)}, such as [q_proj, v_proj], or a regular expression "
                f"of whole names, got {targets!r}"
            )
        self._check_reference()
        self._check_adapter()
        self._check_base()
        self.new_lora()

    @property
    def trains_adapter(self) -> bool:
        """Whether adapters are trained: new ones, or those of a folder.

        Examples:
            >>> ModelConfig(path="policy", adapter="adapter").trains_adapter
            True
        """
        return self.lora_r > 0 or (self.adapter is not None and not self.merge_adapter)

    def _check_reference(self) -> None:
        """Check the keys of a reference that moves."""
        if self.reference_refresh_steps is not None:
            at_least("model.reference_refresh_steps", self.reference_refresh_steps, 1)
        if not 0 <= self.reference_decay < 1:
            raise ValueError(
                f"`model.reference_decay` must be in [0, 1), got {self.reference_decay}"
            )
        if self.reference_decay and self.reference_refresh_steps is None:
            raise ValueError(
                f"`model.reference_decay` {self.reference_decay} needs "
                "`model.reference_refresh_steps`: 1 for an average over all steps"
            )
        if self.reference_decay and self.reference is not None:
            raise ValueError(
                "`model.reference_decay` must be 0 with `model.reference`, got "
                f"{self.reference_decay}: an average begins with the initial policy"
            )

    def _check_adapter(self) -> None:
        """Check the keys that describe an adapter of a folder, against those of new adapters."""
        if self.adapter is None:
            if self.merge_adapter:
                raise ValueError("`model.merge_adapter` needs `model.adapter`, got none: give both")
            return
        if self.merge_adapter:
            return
        defaults = {each.name: each.default for each in fields(self)}
        for name in ("lora_r", *LORA_KEYS):
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"`model.{name}` must not be given with `model.adapter`, whose "
                    "adapter_config.json decides it, unless `model.merge_adapter` is true"
                )

    def _check_base(self) -> None:
        """Check how frozen weights are kept; without adapters no weight is frozen."""
        if self.base_dtype is not None:
            one_of("model.base_dtype", self.base_dtype, DtypeName)
        if self.quantization is not None:
            one_of("model.quantization", self.quantization, QuantizationName)
        for name in ("base_dtype", "quantization"):
            if getattr(self, name) is not None and not self.trains_adapter:
                raise ValueError(
                    f"`model.{name}` is for weights that are frozen while adapters are trained, "
                    f"got {getattr(self, name)} without adapters: set `model.lora_r`, or leave it "
                    "out"
                )

    def new_lora(self) -> LoraConfig | None:
        """Return the new adapters that the keys ``lora_*`` describe.

        Returns:
            The adapters; None if ``lora_r`` is 0.

        Raises:
            ValueError: if one of the keys is invalid.

        Examples:
            >>> ModelConfig(path="policy", lora_r=4, use_rslora=True).new_lora().target_modules
            'all-linear'
        """
        targets = self.lora_target_modules or ALL_LINEAR
        if not isinstance(targets, str):
            targets = ALL_LINEAR if ALL_LINEAR in targets else tuple(dict.fromkeys(targets))
        layers = self.lora_layers_to_transform
        if layers is not None and targets == ALL_LINEAR:
            targets = LINEAR
        ranks, alphas = self.lora_rank_pattern or {}, self.lora_alpha_pattern or {}
        try:
            config = LoraConfig(
                r=self.lora_r or 1,
                lora_alpha=self.lora_alpha,
                target_modules=targets,
                lora_dropout=self.lora_dropout,
                use_rslora=self.use_rslora,
                layers_to_transform=None if layers is None else tuple(layers),
                rank_pattern=tuple(ranks.items()),
                alpha_pattern=tuple(alphas.items()),
                modules_to_save=tuple(self.lora_modules_to_save or ()),
            )
        except ValueError as error:
            raise ValueError(f"`model.lora_*`: {error}") from error
        return config if self.lora_r else None
