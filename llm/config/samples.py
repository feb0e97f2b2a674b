"""Replies of the policy at evaluations, and the reward that judges them."""

from __future__ import annotations

from dataclasses import dataclass

from rpo_io.user_modules import is_reference

from .checks import at_least, zero_or_positive


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Replies of the policy to held-out prompts at evaluations, and the reward that judges them.

    Attributes:
        prompts: number of held-out prompts that the policy answers at every evaluation, from the
            start of each set; 0 for none. The replies are written to ``samples.jsonl``.
        reward: function ``module:name`` of the messages of a prompt and the text of a reply that
            returns a number, as ``rpo evaluate --reward`` takes it. It gives the mean reward and
            the win rate against the chosen responses. None for replies alone.
        max_new_tokens: largest number of tokens of a reply.
        temperature: temperature of sampling; 0 takes the most likely token.
        top_p: sample from the most likely tokens with this total probability.
        top_k: sample from this number of most likely tokens; 0 for all.

    Raises:
        ValueError: if a value is out of range, or a reward has no prompts.

    Examples:
        >>> SamplesConfig(prompts=64, reward="my_rewards:politeness").temperature
        1.0
    """

    prompts: int = 0
    reward: str | None = None
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        """Check the ranges; the function itself is loaded with the data."""
        for name, bound in (("prompts", 0), ("max_new_tokens", 1), ("top_k", 0)):
            at_least(f"trainer.samples.{name}", getattr(self, name), bound)
        zero_or_positive("trainer.samples.temperature", self.temperature)
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"`trainer.samples.top_p` must be above 0 and at most 1, got {self.top_p}"
            )
        if self.reward is not None and not is_reference(self.reward):
            raise ValueError(
                f"`trainer.samples.reward` must be of the form module:name, got {self.reward!r}"
            )
        if self.reward is not None and not self.prompts:
            raise ValueError(
                "`trainer.samples.reward` needs replies: set `trainer.samples.prompts` to their "
                "number"
            )
