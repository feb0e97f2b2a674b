"""Measure a policy: rewards and margins on preference data, win rates by a reward or a judge."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from llm.data.preferences import Message
    from llm.evaluation.win_rates import RewardFunction
    from llm.inference.score import PairScore

EXAMPLES = (
    "rpo evaluate --model policy --reference FOLDER --data rows.jsonl",
    "rpo evaluate --model policy --reference FOLDER --data rows.jsonl --reward my_reward.py:reward",
    "rpo evaluate --model NAME --reference OTHER --judgments annotations.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from rpo.runtime.errors import number, whole_number

    from .generate import add_decoding_arguments
    from .score import add_data_arguments, add_model_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--reference",
        required=True,
        metavar="DIR",
        help="the model to compare with; with --judgments, like --model, its name there",
    )
    add_data_arguments(parser, required=False)
    parser.add_argument(
        "--judgments",
        type=Path,
        metavar="FILE",
        help="AlpacaEval's annotations (.json) or MT-Bench's pair judgments (.jsonl)",
    )
    parser.add_argument(
        "--beta",
        type=number(0.0, inclusive=False),
        default=0.01,
        help="scale of the rewards beta log(policy/reference) (default 0.01)",
    )
    parser.add_argument(
        "--eta",
        type=number(0.0, inclusive=True),
        default=0.005,
        help="weight of the adversarial value (default 0.005)",
    )
    parser.add_argument(
        "--reward",
        metavar="FILE.py:NAME",
        help="a function of prompt messages and reply text: both models answer, it decides",
    )
    parser.add_argument(
        "--prompts",
        type=whole_number(1),
        default=100,
        metavar="N",
        help="how many of the first prompts are answered for --reward (default 100)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the numbers go too")
    add_decoding_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print one JSON object."""
    from rpo.runtime.errors import UsageError, user_input
    from rpo.runtime.loading import prepare_file
    from rpo_io.atomic import write_atomic
    from rpo_io.strict_json import format_document

    if (args.data is None) == (args.judgments is None):
        raise UsageError("give either --data or --judgments")
    if args.reward is not None and args.data is None:
        raise UsageError("argument --reward: goes with --data")
    with user_input():
        if args.out is not None:
            prepare_file(args.out)
        measured = _judged(args) if args.data is None else _measured(args)
        content = format_document(measured).encode()
        if args.out is not None:
            write_atomic(args.out, content)
    sys.stdout.write(content.decode())
    return 0


def load_reward(name: str) -> RewardFunction:
    """A function from a file of the user's.

    Args:
        name: ``FILE.py:NAME``.

    Returns:
        The function.

    Raises:
        ValueError: no such file or function, or the file fails.
    """
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not function:
        raise ValueError(f"argument --reward: must be FILE.py:NAME, got {name!r}")
    spec = importlib.util.spec_from_file_location("reward_of_the_user", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"argument --reward: {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError:
        raise
    except Exception as error:  # any mistake in a user's file
        raise ValueError(f"argument --reward: {path}: {type(error).__name__}: {error}") from error
    reward = getattr(module, function, None)
    if not callable(reward):
        raise ValueError(f"argument --reward: {path} has no function `{function}`")
    return cast("RewardFunction", reward)


def _judged(args: argparse.Namespace) -> dict[str, Any]:
    """Win rate by a judge's file."""
    from llm.evaluation.judgments import count_wins, read_judgments
    from llm.evaluation.win_rates import win_rate_from_counts

    counts = count_wins(read_judgments(args.judgments), args.model, args.reference)
    if counts.wins + counts.ties + counts.losses == 0:
        raise ValueError(f"{args.judgments}: the judge failed on every question")
    comparison = win_rate_from_counts(counts.wins, counts.ties, counts.losses, seed=args.seed)
    return comparison._asdict() | counts._asdict()


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    """Rewards, margins and theory on data, and the win rate under a reward if there is one."""
    from llm.config import ObjectiveConfig
    from llm.evaluation.metrics import preference_metrics
    from llm.evaluation.win_rates import compare_rewards
    from llm.precision import computing_in

    reward = None if args.reward is None else load_reward(args.reward)
    config = ObjectiveConfig(beta=args.beta, eta=args.eta)
    with computing_in(args.dtype):
        policy, rewards = _run_model(args, args.model, reward)
        reference, others = _run_model(args, args.reference, reward)
        measured: dict[str, Any] = preference_metrics(config, policy, reference, seed=args.seed)
    if rewards is not None and others is not None:
        comparison = compare_rewards(rewards, others, seed=args.seed)
        measured |= {
            "reward/model": float(rewards.mean()),
            "reward/reference": float(others.mean()),
        }
        measured |= comparison._asdict()
    return measured


def _run_model(
    args: argparse.Namespace, name: str, reward: RewardFunction | None
) -> tuple[list[PairScore], Any]:
    """Scores of the data and rewards of replies; the model's memory is free afterwards."""
    from llm.evaluation.prompts import read_questions
    from llm.evaluation.win_rates import score_replies
    from llm.inference.generate import generate_replies
    from llm.inference.score import score_pairs
    from rpo.runtime.loading import decoding_from, load, read_pairs
    from rpo.runtime.progress import with_progress

    model, tokenizer = load(name, args.tokenizer, args.dtype)
    scores = score_pairs(
        model,
        read_pairs(args, model, tokenizer),
        batch_size=args.batch_size,
        progress=lambda batches, total: with_progress(batches, total, f"batches scored by {name}"),
    )
    if reward is None:
        return scores, None
    questions = read_questions(args.data)[: args.prompts]
    said = generate_replies(
        model,
        tokenizer,
        questions,
        decoding_from(args),
        batch_size=args.batch_size,
        progress=lambda batches, total: with_progress(batches, total, "batches answered"),
    )
    prompts: list[tuple[Message, ...]] = [question.turns[0] for question in questions]
    return scores, score_replies(reward, prompts, [one[0].text for one in said])
