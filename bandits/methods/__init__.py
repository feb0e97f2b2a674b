"""Methods: RPO, DPO and thirteen others that fit a policy to preference data on bandits.

Each method is a function of batched problems, reward classes and :class:`MethodOptions` in the
dictionary :data:`METHODS`, and returns a :class:`FitResult`. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import CertificateKind, FitResult, MethodFunction, MethodOptions, mle_reward
    from .pessimistic_mle import confidence_radius
    from .policy_losses import chi_squared_policy
    from .registry import METHODS, greedy_policy

_EXPORTS = {
    "METHODS": "registry",
    "CertificateKind": "base",
    "FitResult": "base",
    "MethodFunction": "base",
    "MethodOptions": "base",
    "chi_squared_policy": "policy_losses",
    "confidence_radius": "pessimistic_mle",
    "greedy_policy": "registry",
    "mle_reward": "base",
}

__all__ = [
    "METHODS",
    "CertificateKind",
    "FitResult",
    "MethodFunction",
    "MethodOptions",
    "chi_squared_policy",
    "confidence_radius",
    "greedy_policy",
    "mle_reward",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
