"""Low-rank adapters (LoRA): which projections have one, of which rank and scale.

Names, matching rules and defaults of the fields are those of PEFT's ``LoraConfig``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from .checks import at_least, positive

ALL_LINEAR = "all-linear"
"""Name of all projections in ``target_modules``, as in PEFT."""
LARGEST_RANK = 2**16
TEXT_PREFIX = "model."
"""Beginning of the names of the modules of a text model."""
ValueT = TypeVar("ValueT", int, float)
_LAYER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")


class LoraShape(NamedTuple):
    """Rank and scale of the adapter of one module.

    Attributes:
        rank: number of columns of ``A``.
        alpha: numerator of the scale.
        scale: factor of the product ``A B``.
    """

    rank: int
    alpha: float
    scale: float


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    r"""Low-rank adapters of a model, with the names and rules of PEFT's ``LoraConfig``.

    Attributes:
        r: rank of the adapters.
        lora_alpha: numerator :math:`\alpha` of the scale.
        target_modules: names of modules, or the ends of their names; ``all-linear`` for all
            projections; any other text is a regular expression of whole names, such as
            ``.*layers\.1\..*q_proj``.
        lora_dropout: share in [0, 1) of the inputs of ``A`` that training sets to 0 at random.
        use_rslora: scale by :math:`\alpha/\sqrt r` instead of :math:`\alpha/r`.
        layers_to_transform: indices of the layers with adapters; None for all. It needs a list of
            ``target_modules``.
        layers_pattern: name of the list of layers; None for any name.
        rank_pattern: pairs of a pattern and the rank of the modules whose name ends with it.
        alpha_pattern: the same for :math:`\alpha`.
        modules_to_save: ends of the names of modules whose weights are trained and saved whole,
            such as ``embed_tokens``.
        module_prefix: beginning of the names of modules in the class of the model, which takes the
            place of ``model.``; the text model of a multi-modal model has
            ``model.language_model.``.

    Raises:
        ValueError: if a value is out of range.

    References:
        `hu:22`; `kalajdzievski:23` for the scale of ``use_rslora``.

    Examples:
        >>> lora = LoraConfig(r=4, lora_alpha=8.0, target_modules=("q_proj",))
        >>> lora.shape_of("model.layers.0.self_attn.q_proj")
        LoraShape(rank=4, alpha=8.0, scale=2.0)
    """

    r: int = 8
    lora_alpha: float = 8.0
    target_modules: tuple[str, ...] | str = ALL_LINEAR
    lora_dropout: float = 0.0
    use_rslora: bool = False
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    modules_to_save: tuple[str, ...] = ()
    module_prefix: str = TEXT_PREFIX

    def __post_init__(self) -> None:
        """Check the ranges and compile the patterns."""
        for name, rank in (
            ("r", self.r),
            *((f"rank_pattern.{p}", r) for p, r in self.rank_pattern),
        ):
            at_least(name, rank, 1)
            if rank > LARGEST_RANK:
                raise ValueError(f"`{name}` must be at most {LARGEST_RANK}, got {rank}")
        positive("lora_alpha", self.lora_alpha)
        for pattern, alpha in self.alpha_pattern:
            positive(f"alpha_pattern.{pattern}", alpha)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` must be in [0, 1), got {self.lora_dropout}")
        if not self.target_modules:
            raise ValueError("`target_modules` must name at least one module, got none")
        is_text = isinstance(self.target_modules, str)
        if is_text and (self.layers_to_transform is not None or self.layers_pattern):
            name = "layers_pattern" if self.layers_to_transform is None else "layers_to_transform"
            raise ValueError(
                f"`{name}` goes with a list of `target_modules`, got {self.target_modules!r}"
            )
        for index in self.layers_to_transform or ():
            at_least("layers_to_transform", index, 0)
        if is_text and self.target_modules != ALL_LINEAR:
            _check_pattern("target_modules", str(self.target_modules))
        for name, pairs in (
            ("rank_pattern", self.rank_pattern),
            ("alpha_pattern", self.alpha_pattern),
        ):
            for pattern, _ in pairs:
                _check_pattern(name, pattern)
        for pattern in self.layers_pattern:
            _check_pattern("layers_pattern", pattern)

    def module_name(self, module: str) -> str:
        """Return the name of a module in the class of the model.

        Args:
            module: its name in a text model.

        Examples:
            >>> LoraConfig(module_prefix="model.language_model.").module_name("model.norm")
            'model.language_model.norm'
        """
        if not module.startswith(TEXT_PREFIX):
            return module
        return self.module_prefix + module.removeprefix(TEXT_PREFIX)

    def shape_of(self, module: str) -> LoraShape | None:
        """Return rank and scale of the adapter of a linear module.

        Args:
            module: name of the module in a text model of Hugging Face, such as
                ``model.layers.0.self_attn.q_proj``.

        Returns:
            Rank, alpha and scale; None if the module has no adapter.
        """
        if self.saves(module) or not self.targets(module):
            return None
        module = self.module_name(module)
        rank = _of_pattern(self.rank_pattern, module, self.r)
        alpha = _of_pattern(self.alpha_pattern, module, self.lora_alpha)
        return LoraShape(rank, alpha, alpha / (math.sqrt(rank) if self.use_rslora else rank))

    def targets(self, module: str) -> bool:
        """Return whether ``target_modules`` and ``layers_to_transform`` select a module.

        Args:
            module: name of the module.

        Examples:
            >>> LoraConfig(target_modules=("q_proj",)).targets("model.layers.0.mlp.up_proj")
            False
        """
        names, module = self.target_modules, self.module_name(module)
        if isinstance(names, str):
            return names == ALL_LINEAR or re.fullmatch(names, module) is not None
        if module in names:
            return True
        if not any(module.endswith(f".{name}") for name in names):
            return False
        if not self.layers_to_transform:
            return True
        patterns = [re.compile(rf"(?:^|.*?\.){p}\.(?P<index>\d+)\.") for p in self.layers_pattern]
        found = next(filter(None, (p.match(module) for p in patterns or [_LAYER])), None)
        return found is not None and int(found["index"]) in self.layers_to_transform

    def saves(self, module: str) -> bool:
        """Return whether the weights of a module are saved whole, by itself or with a parent.

        Args:
            module: name of the module.

        Examples:
            >>> LoraConfig(modules_to_save=("mlp",)).saves("model.layers.0.mlp.up_proj")
            True
        """
        parts = self.module_name(module).split(".")
        parents = (".".join(parts[: n + 1]) for n in range(len(parts)))
        return any(name.endswith(end) for name in parents for end in self.modules_to_save)


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{name}` must be a regular expression, got {pattern!r}: {error}"
        ) from error


def _of_pattern(pairs: Iterable[tuple[str, ValueT]], module: str, default: ValueT) -> ValueT:
    """Return the value of the first pattern that the end of a name matches, as PEFT does."""
    for pattern, value in pairs:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
