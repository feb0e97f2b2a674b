"""Model cards: data, objective and length of a training run, with the digests of its inputs."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flax import nnx

from llm.config import ObjectiveConfig, TrainConfig
from llm.hashing import parameters_sha256
from llm.hf.factory import base_path
from llm.models.lora import trainable_filter
from rpo_io.atomic import write_atomic
from rpo_io.bucket_paths import AnyPath
from rpo_io.digests import sha256_hex
from rpo_io.hub import parse_hub_name
from rpo_io.versions import DISTRIBUTION
from rpo_theory import losses

from .checkpoint import CheckpointRecord, Checkpoints
from .policy import Policy
from .resume import EXECUTION
from .tracking import read_log

CARD_NAME = "README.md"
"""File of a model card."""
MARK = f"<!-- Written by {DISTRIBUTION}. Without this line the file is never overwritten. -->"
"""Line by which a card of this package is recognized."""
CITATION = """```bibtex
@inproceedings{liu2024rpo,
  title     = {Provably Mitigating Overoptimization in {RLHF}: Your {SFT} Loss is Implicitly an Adversarial Regularizer},
  author    = {Liu, Zhihan and Lu, Miao and Zhang, Shenao and Liu, Boyi and Guo, Hongyi and Yang, Yingxiang and
               Blanchet, Jose and Wang, Zhaoran},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2405.16436}
}
```"""  # noqa: E501
_LEGEND = (
    r"The mean over pairs of the sum of these terms. Here "
    r"$u_a=\log\big(\pi(a|x)/\pi_{ref}(a|x)\big)$ "
    r"and $h=u_w-u_l$ for the chosen response $w$ and the rejected one $l$:"
)
_OF_TOKENS = {
    "wpo": r"the DPO loss $-\log\sigma(\beta h)$ times the policy's probability of the pair",
    "ld_dpo": r"the DPO loss in which tokens past the shorter length of a pair count $\alpha$",
}
"""Losses that no function of ``rpo_theory.losses`` has whole."""
_CONTINUED = r", \qquad"
"""End of a formula that has further parts on the next line."""
_SFT = {
    "sum": r"-\log\pi(a_0|x)",
    "sequence_mean": r"-\log\pi(a_0|x)/|a_0|",
    "pooled_mean": r"-\log\pi(a_0|x) / \overline{|a_0|}",
}
_logger = logging.getLogger(__name__)


def model_card(
    config: TrainConfig,
    record: CheckpointRecord,
    log: Sequence[Mapping[str, Any]],
    *,
    parameters: str,
    configuration: str,
    adapter: bool = False,
    base_folder: Path | None = None,
) -> str:
    """Return the text of a model card, with the front matter that the hub reads.

    Args:
        config: configuration of the run.
        record: record of the checkpoint.
        log: lines of ``metrics.jsonl``, see :func:`llm.train.tracking.read_log`.
        parameters: digest of all parameters, :func:`llm.hashing.parameters_sha256`.
        configuration: digest of ``config.yaml``.
        adapter: whether the folder holds a PEFT adapter.
        base_folder: folder of the base model, from whose card the license is taken; None for none.

    Returns:
        Markdown.

    Examples:
        >>> model_card(config, record, log, parameters="", configuration="")  # doctest: +SKIP
    """
    objective = config.objective
    front = "\n".join(["---", *_front_matter(config, adapter, base_folder), "---"])
    what = "LoRA adapter" if adapter else "language model"
    release = version(DISTRIBUTION)
    trained = _training(config, record, release)
    sections = [
        f"{front}\n\n{MARK}\n\n# {config.name}",
        f"A {what}, trained on preferences with {DISTRIBUTION} {release}, objective "
        f"`{objective.method}`.",
        f"## Objective\n\n{_LEGEND}\n\n{objective_definition(objective)}",
        f"## Training\n\n{_table(('setting', 'value'), trained)}",
    ]
    measured = _last_metrics(log, record.step)
    if measured:
        title = f"## Metrics of step {measured.pop('step')}"
        rows = {f"`{name}`": f"{value:.6g}" for name, value in sorted(measured.items())}
        sections.append(f"{title}\n\n{_table(('metric', 'value'), rows)}")
    digests = _digests(config, record, parameters, configuration)
    sections.append(f"## Digests\n\n{_table(('input or output', 'SHA-256'), digests)}")
    sections.append(f"## Citation\n\n{CITATION}")
    return "\n\n".join(sections) + "\n"


def exported_card(
    config: TrainConfig,
    run_folder: AnyPath,
    policy: Policy,
    *,
    adapter: bool,
    base_folder: Path | None,
) -> str:
    """Return the card of an exported policy.

    Args:
        config: configuration of the run.
        run_folder: folder of the run.
        policy: the policy, from :func:`llm.train.policy.load_policy`.
        adapter: see :func:`model_card`.
        base_folder: see :func:`model_card`.

    Returns:
        Markdown.

    Examples:
        >>> exported_card(config, run, policy, adapter=False, base_folder=None)  # doctest: +SKIP
    """
    decoder = policy.decoder
    _, trainable, frozen = nnx.split(decoder, trainable_filter(decoder), ...)
    return model_card(
        config,
        Checkpoints(run_folder / "checkpoints").find(policy.step),
        read_log(run_folder / "metrics.jsonl"),
        parameters=parameters_sha256(trainable, frozen),
        configuration=configuration_digest(run_folder),
        adapter=adapter,
        base_folder=base_folder,
    )


def write_model_card(folder: AnyPath, text: str) -> bool:
    """Write a model card, unless the folder has one that this package did not write.

    Args:
        folder: an existing folder.
        text: the card.

    Returns:
        Whether the card was written; otherwise a warning is logged.

    Examples:
        >>> write_model_card(Path("policy"), card)  # doctest: +SKIP
        True
    """
    path = folder / CARD_NAME
    if path.exists() and not is_generated_card(path.read_bytes().decode(errors="replace")):
        _logger.warning("%s is kept: this package did not write it", path)
        return False
    write_atomic(path, text.encode())
    return True


def is_generated_card(text: str) -> bool:
    """Return whether a card was written by this package, and not changed by removing its mark.

    Args:
        text: the card.

    Examples:
        >>> is_generated_card("# My model")
        False
    """
    return MARK in text


def configuration_digest(run_folder: AnyPath) -> str:
    """Return the digest of the configuration of a run.

    Args:
        run_folder: folder with ``config.yaml``.

    Examples:
        >>> len(configuration_digest(Path("out/run")))  # doctest: +SKIP
        64
    """
    return sha256_hex((run_folder / "config.yaml").read_bytes())


def objective_definition(objective: ObjectiveConfig) -> str:
    r"""Return the definition of an objective with its constants.

    Args:
        objective: the objective.

    Returns:
        One line of Markdown with formulas for each term; :math:`h` is the difference of the
        log-ratios to the reference.

    Examples:
        >>> print(objective_definition(ObjectiveConfig(method="hinge", beta=0.5)))
        * `hinge`: the hinge loss $\max(0, 1-\beta h)$ of the margin; $\beta$ = 0.5
    """
    lines = []
    for term in objective.terms:
        factor = "" if term.weight == 1.0 else f"{term.weight:g} times "
        options = vars(term.options) if hasattr(term.options, "__dict__") else {}
        constants = [rf"$\beta$ = {objective.beta:g}"] if term.loss.uses_beta else []
        constants += [f"`{name}` = {value!r}" for name, value in options.items() if value]
        definition = "; ".join([_summary(term.loss.name), ", ".join(constants)]).rstrip("; ")
        lines.append(f"* {factor}`{term.loss.name}`: {definition}")
    if objective.trains_sft:
        formula, weight = _SFT[objective.sft_reduction], ""
        if objective.method == "rpo":
            weight = rf"$\eta\beta$ = {objective.sft_weight:g} times "
        lines.append(
            f"* {weight}`sft`: ${formula}$ of the baseline response $a_0$, which is the chosen one "
            "unless the row has another"
        )
    schedules = {"beta": objective.beta_schedule, "eta": objective.eta_schedule}
    for name, schedule in schedules.items():
        if objective.has_schedules and schedule.kind != "constant":
            lines.append(rf"* $\{name}$ moves over the steps: `{schedule.kind}`")
    return "\n".join(lines)


def _summary(name: str) -> str:
    """Return the first sentence of the docstring of a loss, with its formula in dollars."""
    function = getattr(losses, name, None)
    if function is None:
        return _OF_TOKENS.get(name, f"the loss `{name}`")
    text = inspect.getdoc(function) or ""
    first = text.partition("\n")[0].removeprefix("Return ").rstrip(".")
    block = re.search(r"^\.\. math:: (.+)$", text, re.M)
    if ":math:" not in first and block is not None:
        first += f": ${block[1].removesuffix(_CONTINUED).rstrip('.,')}$"
    return re.sub(r":math:`([^`]+)`", r"$\1$", first)


def _front_matter(config: TrainConfig, adapter: bool, base_folder: Path | None) -> list[str]:
    # A slow import that other commands do not need.
    from huggingface_hub import ModelCard, ModelCardData

    base = base_path(config.model)
    found = None if base is None or Path(base).is_dir() else parse_hub_name(base)
    sources = [source.name for source in config.data.train_sources]
    hub = [parse_hub_name(name, kind="dataset") for name in sources if isinstance(name, str)]
    license_name = None
    if base_folder is not None and (base_folder / CARD_NAME).is_file():
        text = (base_folder / CARD_NAME).read_text(encoding="utf-8", errors="replace")
        try:
            license_name = ModelCard(text, ignore_metadata_errors=True).data.get("license")
        except Exception:  # a card of others may hold any text
            _logger.warning("%s: the license cannot be read", base_folder / CARD_NAME)
    tags = ["preference-optimization", config.objective.method, DISTRIBUTION]
    if adapter:
        tags += ["lora", "transformers"]
        tags += [] if found is None else [f"base_model:adapter:{found.name}"]
    data = ModelCardData(
        base_model=None if found is None else found.name,
        datasets=[each.name for each in dict.fromkeys(hub) if each is not None] or None,
        library_name="peft" if adapter else "transformers",
        license=license_name,
        pipeline_tag="text-generation",
        tags=tags,
    )
    return data.to_yaml().strip().splitlines()


def _training(config: TrainConfig, record: CheckpointRecord, release: str) -> dict[str, str]:
    kept = record.fingerprint["configuration"]["trainer"]["pairs_per_step"]
    execution = record.data.get(EXECUTION, {})
    sizes = {name: size for name, size in execution.items() if name.startswith("mesh.")}
    mesh = ", ".join(f"{name.removeprefix('mesh.')} {n}" for name, n in sizes.items() if n > 1)
    optimizer, base = config.optimizer, base_path(config.model)
    kind = execution.get("the kind of device", "unknown")
    devices = f"{math.prod(sizes.values())} ({kind}" + (f"; mesh: {mesh})" if mesh else ")")
    shown = ", ".join(
        each if isinstance(each, str) else ", ".join(each)
        for each in (source.name for source in config.data.train_sources)
    )
    return {
        "base model": "random parameters" if base is None else f"`{_short(base)}`",
        "training rows": f"`{', '.join(map(_short, shown.split(', ')))}`",
        "steps": f"{record.step:,}",
        "pairs per step": f"{kept:,}",
        "pairs trained on": f"at most {record.step * kept:,}",
        "longest sequence": f"{config.data.max_length:,} tokens",
        "optimizer": f"`{optimizer.optim}`, learning rate {optimizer.learning_rate:g}, "
        f"`{optimizer.lr_scheduler_type}`",
        "dtypes": f"parameters {config.model.param_dtype}, computation {config.model.dtype}",
        "seed": str(config.trainer.seed),
        "devices": devices,
        "processes": str(execution.get("the number of processes", 1)),
        "code": f"{DISTRIBUTION} {release}, JAX {execution.get('the version of JAX', 'unknown')}",
    }


def _short(source: str) -> str:
    """Return a hub name as it is, and the last part of a local path: the rest is private."""
    local = Path(source).is_absolute() or source.startswith(("./", "../", "~"))
    return Path(source).name if local else source


def _last_metrics(log: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """Return the last evaluation up to a step, or the last training step if there is none."""
    lines = [line for line in log if "event" not in line and line.get("step", 0) <= step]
    for is_wanted in (lambda name: name.startswith("eval_"), lambda name: "perf/" not in name):
        for line in reversed(lines):
            found = {
                name: value
                for name, value in line.items()
                if name != "step" and is_wanted(name) and isinstance(value, int | float)
            }
            if found:
                return found | {"step": line["step"]}
    return {}


def _digests(
    config: TrainConfig, record: CheckpointRecord, parameters: str, configuration: str
) -> dict[str, str]:
    model, data = record.fingerprint["model"], record.fingerprint["data"]
    names = {
        "rows of training and evaluation": data["data"],
        "tokenizer": data["tokenizer"],
        "chat template": data["template"],
        "initial parameters": model["initial_weights"],
        "`config.yaml`": configuration,
        "parameters after training": parameters,
    }
    if config.model.trains_adapter:
        names["parameters that were not trained"] = model["frozen_weights"]
    if config.objective.needs_reference:
        names["parameters of the reference"] = model["reference"] or model["initial_weights"]
    return {name: f"`{digest}`" for name, digest in names.items()}


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    cells = [f"| {name} | {_escaped(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *cells])


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
