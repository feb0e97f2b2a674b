"""Fingerprints of runs: a checkpoint must match the fingerprint of the run that resumes it.

A fingerprint has three parts: the model, the data and the configuration. It is stored with every
checkpoint, so that a refused resume can name the part and the key that differ. It also holds the
release of the package and the number of the checkpoint format, but never a commit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import jax

from llm.config import LoraConfig, TrainConfig
from llm.models.architecture import Architecture
from rpo_io.versions import release_version

FORMAT = 2
"""Format of checkpoints; it grows when what is stored, or how, changes."""
FREE_TRAINER_KEYS = (
    "logging_steps",
    "save_steps",
    "save_minutes",
    "save_total_limit",
    "eval_steps",
    "eval_on_start",
    "metric_for_best_model",
    "greater_is_better",
    "profile_steps",
    "coverage_samples",
    "samples",
    "report_to",
    "step0_tolerance",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "global_batch_size",
    "max_steps",
    "num_train_epochs",
)
"""Keys of ``trainer`` that may change on resume.

The number of pairs of a step must stay; how it is divided over devices and parts may change. A run
may be continued for more steps.
"""
FREE_KEYS = (
    "name",
    "data.train",
    "data.eval",
    "data.tokenizer",
    "data.chat_template",
    "model.path",
    "model.adapter",
    "model.reference",
)
"""Names and paths, which may change on resume: the digests of the contents are compared."""
SOURCES = {
    "data": "the rows of `data.train` or `data.eval`",
    "tokenizer": "the tokenizer of `data.tokenizer` or `model.path`",
    "template": "the chat template",
    "initial_weights": "the weights of `model.path`",
    "frozen_weights": "the frozen weights of `model.path`",
    "reference": "the weights of `model.reference`",
    "trainer.pairs_per_step": "the number of pairs of a step "
    "(`trainer.global_batch_size`, or `trainer.per_device_train_batch_size` x "
    "`trainer.gradient_accumulation_steps` x devices)",
}
"""What a compared value that is no key stands for, for messages."""
NAMED_KEYS = 6
"""Number of differing keys that a message names; the others are only counted."""


class Fingerprint(NamedTuple):
    """Model, data and configuration of a run, as plain JSON values.

    Attributes:
        model: architecture, shapes of the trained parameters, digests of the initial weights.
        data: digests of the preference data, the tokenizer and the chat template.
        configuration: the keys that the trained parameters depend on.
        release: release of the package, such as ``0.1.0``.
        format: number of the checkpoint format.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    configuration: dict[str, Any]
    release: str
    format: int = FORMAT

    def difference(self, recorded: Mapping[str, Any]) -> str | None:
        """Describe how the fingerprint of a checkpoint differs from this one.

        Args:
            recorded: the fingerprint that is stored with the checkpoint, as a dictionary.

        Returns:
            The first part that differs and the keys that do, for an error message; None if both
            are equal.

        Examples:
            >>> run = Fingerprint({}, {}, {"objective": {"eta": 0.2}}, "0.1.0")
            >>> run.difference(run._asdict() | {"configuration": {"objective": {"eta": 0.1}}})
            'another configuration (`objective.eta` was 0.1 and is 0.2)'
        """
        written = (recorded.get("release"), recorded.get("format"))
        if written != (self.release, self.format):
            return (
                f"version {written[0]} (format {written[1]}); this is version {self.release} "
                f"(format {self.format})"
            )
        for part in ("configuration", "data", "model"):
            named = name_changes(recorded.get(part, {}), getattr(self, part))
            if named is not None:
                return f"{'other' if part == 'data' else 'another'} {part} ({named})"
        return None


def name_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Name the keys of a configuration that differ, with both values, except :data:`FREE_KEYS`.

    Args:
        before: recorded values, nested mappings.
        now: values of this run.

    Returns:
        A phrase for an error message; None if nothing differs.

    Examples:
        >>> name_changes({"data": {"max_length": 8}}, {"data": {"max_length": 9}, "name": "b"})
        '`data.max_length` was 8 and is 9'
    """
    changes = list(_changes(dict(before), dict(now)))
    more = len(changes) - NAMED_KEYS
    return ", ".join(changes[:NAMED_KEYS]) + (f" and {more} more" if more > 0 else "") or None


def configuration_of(config: TrainConfig) -> dict[str, Any]:
    """Return the keys of a configuration that a checkpoint records, as plain JSON values.

    Args:
        config: configuration of a run.

    Returns:
        All sections but the mesh, without :data:`FREE_TRAINER_KEYS`.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig
        >>> model, data = ModelConfig(path="policy"), DataConfig(train="rows.jsonl")
        >>> sorted(configuration_of(TrainConfig(name="run", model=model, data=data)))[:3]
        ['data', 'model', 'name']
    """
    kept = asdict(config)
    kept.pop("mesh")
    for name in FREE_TRAINER_KEYS:
        kept["trainer"].pop(name)
    return _plain(kept)


def make_fingerprint(
    config: TrainConfig,
    *,
    architecture: Architecture,
    trainable: Any,
    initial_weights: str,
    frozen_weights: str,
    data_digests: Mapping[str, str],
    pairs_per_step: int,
    lora: LoraConfig | None = None,
    reference: str | None = None,
) -> Fingerprint:
    """Compute the fingerprint of a run.

    Args:
        config: configuration of the run. The mesh and :data:`FREE_TRAINER_KEYS` are left out: the
            same pairs on other devices are the same run.
        architecture: architecture of the model.
        trainable: the trained parameters, arrays or shapes.
        initial_weights: digest of all parameters before the first step.
        frozen_weights: digest of the parameters that are not trained and so in no checkpoint.
        data_digests: digests by name, see :attr:`llm.train.dataset.TrainingData.provenance`.
        pairs_per_step: pairs of a step over all devices.
        lora: adapters of the model; None if all parameters are trained.
        reference: digest of the parameters of another model that is the reference; None if the
            initial policy is.

    Returns:
        The fingerprint.
    """
    kept = configuration_of(config)
    kept["trainer"]["pairs_per_step"] = pairs_per_step
    model = {
        "architecture": asdict(architecture),
        "parameters": {
            "/".join(parameter_path(path)): f"{leaf.dtype} {list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_flatten_with_path(trainable)[0]
        },
        "initial_weights": initial_weights,
        "frozen_weights": frozen_weights,
        "lora": None if lora is None else asdict(lora),
        "reference": reference,
    }
    data = dict(data_digests)
    return Fingerprint(_plain(model), _plain(data), kept, release_version())


def parameter_path(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the names that lead to a leaf of a tree of parameters.

    Args:
        path: a path of ``jax.tree_util``; the last step into an ``nnx`` variable is left out.

    Returns:
        Names and indices as strings, such as ``("layers", "q_proj", "kernel")``.

    Examples:
        >>> tree = {"layers": [{"kernel": jnp.zeros(1)}]}
        >>> parameter_path(jax.tree_util.tree_flatten_with_path(tree)[0][0][0])
        ('layers', '0', 'kernel')
    """
    *parents, last = path
    is_value = parents and isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value"
    names = []
    for key in parents if is_value else path:
        match key:
            case jax.tree_util.GetAttrKey(name=name):
                names.append(name)
            case jax.tree_util.SequenceKey(idx=index):
                names.append(str(index))
            case _:
                names.append(str(key.key))
    return tuple(names)


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value, default=str))


def _changes(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield a phrase for every key whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            below = f"{path}.{name}" if path else name
            if below not in FREE_KEYS:
                yield from _changes(before.get(name), now.get(name), below)
    elif before != now:
        source = SOURCES.get(path)
        if source is None:
            yield f"`{path}` was {before!r} and is {now!r}"
        else:  # the digests of contents would not help
            is_count = isinstance(now, int)
            yield f"{source} was {before} and is {now}" if is_count else f"{source} changed"
