"""Keys of the router that all mixtures of experts share."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader, read_optional
from .record import Fields

ROUTER = {
    "num_experts": None,
    "num_local_experts": None,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
    "output_router_logits": False,
}
"""``num_experts`` and ``num_local_experts`` are two names of one number; each family has one."""


def read_router(keys: ConfigReader) -> Fields:
    """Return the fields of the router.

    Args:
        keys: the configuration; one of the two names has a default.

    Returns:
        The fields of the router that all families share.

    Raises:
        ValueError: if the two names of the number of experts have different values.

    Examples:
        >>> keys = ConfigReader({"num_experts": 4}, {**ROUTER, "num_local_experts": 8})
        >>> read_router(keys)["num_experts"]
        4
    """
    names = ("num_experts", "num_local_experts")
    given = [read_optional(keys.config, name, int) for name in names]
    if None not in given and given[0] != given[1]:
        raise ValueError(
            f"`num_experts` is {given[0]}, but `num_local_experts` is {given[1]}: remove one of "
            "them"
        )
    defaults = [keys.defaults[name] for name in names]
    found = next(number for number in (*given, *defaults) if number is not None)
    if found < 1:
        raise ValueError(f"`num_experts` must be positive, got {found}")
    return {
        "num_experts": found,
        "num_experts_per_tok": keys.positive("num_experts_per_tok"),
        "router_aux_loss_coef": keys.value("router_aux_loss_coef", float),
        "output_router_logits": keys.value("output_router_logits", bool),
    }


def write_router(a: Architecture, name: str) -> Fields:
    """Return the keys of the router.

    Args:
        a: the architecture.
        name: the family's name of the number of experts.

    Returns:
        The keys of the router that all families share.
    """
    keys = ("num_experts_per_tok", "router_aux_loss_coef", "output_router_logits")
    return {name: a.num_experts, **{key: getattr(a, key) for key in keys}}
