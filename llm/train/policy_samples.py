"""Replies of the policy to held-out prompts at evaluations, their rewards and their win rate.

Every evaluation answers the same prompts with the same random numbers, in programs that are
compiled once. A reward function compares each reply with the chosen response of its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np
from jaxtyping import Float

from llm.config import TrainConfig
from llm.data.preferences import PairTokens, PreferenceRow
from llm.evaluation.win_rates import compare_rewards, score_replies
from llm.inference.generate import GeneratedTokens, GenerationConfig, generate_tokens
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from rpo_io.bucket_paths import AnyPath
from rpo_io.user_modules import load_object, printing_to_stderr

from .tracking import JsonLinesTracker

if TYPE_CHECKING:
    from llm.evaluation.win_rates import RewardFunction

    from .dataset import SampledRows, TrainingData

FILE = "samples.jsonl"
"""File of the replies in the folder of a run."""
KEY = "trainer.samples"
"""Section of the configuration, for messages."""


class StopRequestedError(Exception):
    """The run was asked to stop while replies were generated."""


class RewardError(ValueError):
    """The reward function of the user failed, or returned no finite number."""


def load_reward(config: TrainConfig) -> RewardFunction | None:
    """Load the reward function of a configuration.

    Args:
        config: configuration of a run.

    Returns:
        The function; None if ``trainer.samples.reward`` is not given.

    Raises:
        ValueError: if the module cannot be imported, or has no such function.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig
        >>> model, data = ModelConfig(path="policy"), DataConfig(train="rows.jsonl")
        >>> load_reward(TrainConfig(name="run", model=model, data=data)) is None
        True
    """
    name = config.trainer.samples.reward
    if name is None:
        return None
    try:
        function = load_object(name, "function")
    except ValueError as error:
        raise ValueError(f"`{KEY}.reward` {error}") from error
    if not callable(function):
        raise ValueError(f"`{KEY}.reward` must be a function, got {name!r}, which is none")
    return cast("RewardFunction", function)


def check_samples(
    config: TrainConfig, data: TrainingData, architecture: Architecture, reward: Any
) -> None:
    """Refuse samples that the evaluations of a run cannot make.

    The reward function is called once, on the first prompt and its chosen response.

    Args:
        config: configuration of the run.
        data: its tokenized pairs.
        architecture: architecture of the model.
        reward: function of :func:`load_reward`; None for no reward.

    Raises:
        ValueError: if a set has no rows left, the rows are unpaired, a prompt leaves no room for
            a reply, or the reward is no finite number.

    Examples:
        >>> check_samples(config, data, model.architecture, reward)  # doctest: +SKIP
    """
    if not config.trainer.samples.prompts:
        return
    if data.train.desirable is not None:
        raise ValueError(
            f"`{KEY}.prompts` must be 0 with unpaired rows, which have no chosen response that a "
            f"reply could be compared with, got {config.trainer.samples.prompts}"
        )
    rows = _sampled(data).rows
    longest = max(len(pair.prompt) for each in _pairs(data, rows).values() for pair in each)
    room = architecture.max_position_embeddings - longest
    if config.trainer.samples.max_new_tokens > room:
        raise ValueError(
            f"`{KEY}.max_new_tokens` must be at most {room}, what the model reads after the "
            f"longest of these prompts, got {config.trainer.samples.max_new_tokens}"
        )
    if reward is not None:
        _rewards_of_chosen(reward, next(filter(None, rows.values()))[:1])


class PolicySamples:
    """Replies of the policy to the same held-out prompts at every evaluation.

    Attributes:
        names: names of the metrics of a set of rows, without the prefix of an evaluation.
    """

    names: tuple[str, ...]

    def __init__(
        self, config: TrainConfig, data: TrainingData, architecture: Architecture, folder: AnyPath
    ) -> None:
        """Load the reward and compute the rewards of the chosen responses.

        Args:
            config: configuration of the run, whose ``trainer.samples.prompts`` is positive.
            data: its tokenized pairs.
            architecture: architecture of the model.
            folder: folder of the run; the first process writes :data:`FILE` there.

        Raises:
            ValueError: see :func:`check_samples`.
        """
        self._reward = reward = load_reward(config)
        check_samples(config, data, architecture, reward)
        self._rows, tokenizer = _sampled(data)
        self._decode, self._end_ids = tokenizer.decode, data.end_ids
        self._pairs = _pairs(data, self._rows)
        self._batch_size = config.trainer.per_device_train_batch_size
        samples = config.trainer.samples
        self._decoding = GenerationConfig(
            max_new_tokens=samples.max_new_tokens,
            temperature=samples.temperature,
            top_p=samples.top_p,
            top_k=samples.top_k,
            seed=config.trainer.seed,
        )
        self._log = JsonLinesTracker(folder / FILE) if jax.process_index() == 0 else None
        self._records: list[dict[str, Any]] = []
        self.names = ("samples/tokens", "samples/finished")
        if reward is not None:
            self.names += ("reward/policy", "reward/chosen")
            self.names += ("win_rate", "win_rate_lower", "win_rate_upper")
            self._chosen = {
                name: _on_first_process(partial(_rewards_of_chosen, reward, rows))
                for name, rows in self._rows.items()
            }

    def start(self, step: int) -> None:
        """Drop the replies that an interrupted run wrote after a step.

        Args:
            step: number of updates made.
        """
        if self._log is not None:
            self._log.start(step)

    def write(self, step: int) -> None:
        """Write the replies that were measured last.

        Args:
            step: number of updates made.
        """
        if self._log is not None:
            for record in self._records:
                self._log.log(step, record)

    def measure(self, policy: Decoder, is_stop_requested: Callable[[], bool]) -> dict[str, float]:
        """Answer the prompts and compare the rewards; :meth:`write` writes the replies.

        Args:
            policy: the policy.
            is_stop_requested: asked before every batch.

        Returns:
            Metrics with the prefix ``eval_``, or ``eval_NAME_`` for a named set: number of tokens
            of a reply and share of finished replies; with a reward its means and the win rate over
            the chosen responses, where a tie counts one half, with its 95 % interval.

        Raises:
            StopRequestedError: if the run is asked to stop.
            RewardError: if the reward fails.
            ValueError: if logits are not finite.
        """

        def until_stopped(batches: Iterable[Any], n_batches: int) -> Iterator[Any]:
            del n_batches
            for batch in batches:
                if is_stop_requested():
                    raise StopRequestedError
                yield batch

        prompts = [pair.prompt for pairs in self._pairs.values() for pair in pairs]
        replies = iter(
            generate_tokens(
                policy,
                prompts,
                self._decoding,
                end_ids=self._end_ids,
                batch_size=self._batch_size,
                progress=until_stopped,
            )
        )
        metrics, records = {}, []
        for name, rows in self._rows.items():
            answers = [next(replies) for _ in rows]
            if not rows:
                continue
            measured, more = self._compare(name, rows, answers)
            prefix = f"eval_{name}_" if name else "eval_"
            metrics |= {f"{prefix}{key}": value for key, value in measured.items()}
            records += more
        self._records = records
        return metrics

    def _compare(
        self, name: str, rows: Sequence[PreferenceRow], answers: Sequence[GeneratedTokens]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the metrics of a set, and one record for each reply."""
        texts = [self._decode(answer.tokens) for answer in answers]
        records: list[dict[str, Any]] = [
            ({"set": name} if name else {})
            | {
                "where": row.where,
                "prompt": [message.to_dict() for message in row.prompt],
                "reply": text,
                "tokens": len(answer.tokens),
                "finished": answer.finished,
            }
            for row, text, answer in zip(rows, texts, answers, strict=True)
        ]
        metrics = {
            "samples/tokens": float(np.mean([len(answer.tokens) for answer in answers])),
            "samples/finished": float(np.mean([answer.finished for answer in answers])),
        }
        if self._reward is None:
            return metrics, records
        reward, chosen = self._reward, self._chosen[name]
        rewards = _on_first_process(partial(_score, reward, rows, texts))
        rate = compare_rewards(rewards, chosen)
        for record, value, other in zip(records, rewards.tolist(), chosen.tolist(), strict=True):
            record |= {"reward": value, "chosen_reward": other}
        return metrics | {
            "reward/policy": float(rewards.mean()),
            "reward/chosen": float(chosen.mean()),
            "win_rate": rate.win_rate,
            "win_rate_lower": rate.lower,
            "win_rate_upper": rate.upper,
        }, records


def _sampled(data: TrainingData) -> SampledRows:
    """Return the rows whose prompts are answered."""
    if data.samples is None:
        raise ValueError(
            f"`data.samples` must have rows if `{KEY}.prompts` is positive, got None: load the "
            "data with `n_samples`"
        )
    if not any(data.samples.rows.values()):
        raise ValueError(
            f"`{KEY}.prompts` needs rows for evaluation, and none is left: give `data.eval` or "
            "`data.eval_rows`"
        )
    return data.samples


def _pairs(
    data: TrainingData, rows: Mapping[str, Sequence[PreferenceRow]]
) -> dict[str, list[PairTokens]]:
    """Return the tokenized pairs of rows, by the name of their set."""
    return {
        name: list(pairs.select(np.isin(pairs.rows, [row.row for row in rows[name]])))
        for name, pairs in data.evaluation_sets.items()
    }


def _score(
    reward: RewardFunction, rows: Sequence[PreferenceRow], texts: Sequence[str]
) -> Float[np.ndarray, " n"]:
    prompts, sources = [row.prompt for row in rows], [row.where for row in rows]
    try:
        with printing_to_stderr():
            return score_replies(reward, prompts, texts, sources=sources)
    except ValueError as error:
        raise RewardError(f"`{KEY}.reward`: {error}") from error


def _rewards_of_chosen(
    reward: RewardFunction, rows: Sequence[PreferenceRow]
) -> Float[np.ndarray, " n"]:
    """Return the rewards of the chosen responses; of several turns the first one counts."""
    return _score(reward, rows, [row.chosen[0].content for row in rows])


def _on_first_process(
    compute: Callable[[], Float[np.ndarray, " n"]],
) -> Float[np.ndarray, " n"]:
    """Compute numbers on the first process; all processes get them, or raise an error together."""
    if jax.process_count() == 1:
        return compute()
    from jax.experimental import multihost_utils

    failure, values = None, np.zeros(0)
    if jax.process_index() == 0:
        try:
            values = compute()
        except ValueError as error:
            failure = error
    # The number of values is negative after a failure. Bytes keep float64 in 32-bit mode.
    count = multihost_utils.broadcast_one_to_all(np.int32(-1 if failure else len(values)))
    if failure is not None:
        raise failure
    if count < 0:
        raise RewardError(f"`{KEY}.reward` failed on the first process, which has the error")
    sent = values if len(values) else np.zeros(int(count))
    return np.asarray(multihost_utils.broadcast_one_to_all(sent.view(np.uint32))).view(np.float64)
