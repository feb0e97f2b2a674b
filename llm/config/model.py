"""The model to train, its dtypes and its adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .checks import at_least, path_or_architecture, positive

DtypeName = Literal["float32", "bfloat16", "float64"]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Projections that can have an adapter."""
LARGEST_RANK = 2**16


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
