"""Answer prompts with a model, in files that AlpacaEval and MT-Bench judge where they asked."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = (
    "rpo generate --model policy --prompt 'Why is the sky blue?'",
    "rpo generate --model policy --data prompts.jsonl --out replies.jsonl --temperature 0.7",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from .score import add_model_arguments

    add_model_arguments(parser)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="answer this on standard output")
    asked.add_argument(
        "--data",
        metavar="FILE",
        help="rows with prompt, AlpacaEval's instructions, or MT-Bench's questions",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where answers to --data are written"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="what judges will call the model (default: its folder)"
    )
    add_decoding_arguments(parser)


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how replies are chosen."""
    from rpo.runtime.errors import number, whole_number

    parser.add_argument(
        "--max-new-tokens",
        type=whole_number(1),
        default=256,
        metavar="N",
        help="longest reply (default 256)",
    )
    parser.add_argument(
        "--temperature",
        type=number(0.0, inclusive=True),
        default=0.0,
        metavar="T",
        help="draw tokens at this temperature; 0, the default, takes the likeliest",
    )
    parser.add_argument(
        "--top-p",
        type=number(0.0, inclusive=False),
        default=1.0,
        metavar="P",
        help="draw only from the likeliest tokens with this probability together (default 1)",
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="S", help="of the draws (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Answer, and say where the answers are."""
    from rpo.runtime.errors import UsageError, user_input
    from rpo.runtime.loading import decoding_from, load, prepare_file
    from rpo.runtime.output import tell
    from rpo.runtime.progress import with_progress
    from rpo_io.atomic import write_atomic

    if (args.data is None) != (args.out is None):
        raise UsageError("argument --out: goes with --data, and --data with it")
    with user_input():
        decoding = decoding_from(args)
        if args.out is not None:
            prepare_file(args.out)
    from llm.data.preferences import Message
    from llm.evaluation.prompts import Question, format_answers, read_questions
    from llm.inference.generate import generate_replies
    from llm.precision import computing_in

    with user_input(), computing_in(args.dtype):
        if args.data is None:
            turns = ((Message("user", args.prompt),),)
            questions = [Question("rows", turns, {}, "argument --prompt")]
        else:
            questions = read_questions(args.data)
        model, tokenizer = load(args.model, args.tokenizer, args.dtype)
        answers = generate_replies(
            model,
            tokenizer,
            questions,
            decoding,
            batch_size=args.batch_size,
            progress=lambda batches, total: with_progress(batches, total, "batches answered"),
        )
        if args.out is None:
            said = answers[0][0]
            tell(args, said._asdict(), said.text + "\n")
            return 0
        name = args.name or Path(args.model).name
        write_atomic(args.out, format_answers(questions, answers, name))
    cut = sum(not one.finished for said in answers for one in said)
    text = (
        f"written to {args.out}: {len(answers):,} answers as {questions[0].kind}, "
        f"{cut:,} replies cut at {decoding.max_new_tokens} tokens\n"
    )
    tell(args, {"out": str(args.out), "answers": len(answers), "cut": cut}, text)
    return 0
