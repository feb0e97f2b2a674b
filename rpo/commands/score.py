"""Compute the log-probabilities of the responses of preference data under a model."""

from __future__ import annotations

import argparse
from typing import Any

from rpo.runtime import processes
from rpo.runtime.errors import any_path, whole_number
from rpo.runtime.loading import DTYPES, PAIRS, PROMPTS
from rpo.runtime.meshes import add_mesh_arguments, mesh_option

EXAMPLES = ("rpo score --model policy --data rows.jsonl --out scores.jsonl",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo score``."""
    add_model_arguments(parser)
    add_data_arguments(parser, required=True)
    parser.add_argument(
        "--out",
        type=any_path,
        required=True,
        metavar="FILE.jsonl",
        help="file for the scores, one JSON object per row",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that choose a model and how it is run."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="Hugging Face folder or PEFT adapter, local or in a bucket, name on the hub, folder "
        "of rpo train, or one of its checkpoints",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder, name on the hub, or bytes for byte tokens (default: that of the model)",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE|chatml",
        help="chat template: a Jinja file, or chatml (default: that of the tokenizer)",
    )
    parser.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        metavar="JSON",
        help="variables of the chat template, such as '{\"enable_thinking\": false}'",
    )
    parser.add_argument(
        "--template-date",
        metavar="YYYY-MM-DD",
        help="date that the chat template writes as today (default: that of the run that exported "
        "the model, or today)",
    )
    parser.add_argument(
        "--special-tokens",
        choices=("refuse", "as_text"),
        help="refuse a text that contains a control token, or write the token as ordinary text "
        "(default: that of the run that exported the model, or refuse)",
    )
    parser.add_argument(
        "--data-format",
        choices=("chat", "text"),
        help="write conversations with the chat template, or texts as they are, for base models "
        "(default: that of the run that exported the model, or chat)",
    )
    parser.add_argument(
        "--columns",
        type=json_object,
        metavar="JSON",
        help='columns of --data, such as \'{"prompt": "question", "notes": "ignore"}\'',
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        metavar="N",
        help="number of pairs or prompts that are processed together, on all devices (default "
        f"{PAIRS} pairs, {PROMPTS} prompts)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="dtype of the parameters and the computation (default float32)",
    )
    add_mesh_arguments(parser)
    processes.add_arguments(parser)


def json_object(text: str) -> dict[str, Any]:
    """Convert the text of an option to an object.

    Args:
        text: an object in JSON, or as YAML writes it in one line: ``{prompt: question}``.

    Returns:
        The object.

    Raises:
        argparse.ArgumentTypeError: if the text is not one, or has a key twice.
    """
    from rpo.runtime.yaml_files import parse_yaml

    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a JSON object: {str(error).strip()}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r:.60}")
    return value


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of :func:`add_model_arguments` by the arguments of ``rpo.api``."""
    names = ("model", "tokenizer", "chat_template", "chat_template_kwargs", "template_date")
    names += ("special_tokens", "data_format", "columns", "batch_size", "dtype")
    given = {name: getattr(args, name) for name in names}
    return {**given, "mesh": mesh_option(args), "processes": args.group}


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare the options that choose preference data and how they are read."""
    parser.add_argument(
        "--data",
        required=required,
        metavar="FILE",
        help="preference rows: JSON lines, a JSON list, CSV, Parquet or Arrow, a folder or pattern "
        "of such files, local or in a bucket, or a data set on the hub",
    )
    parser.add_argument(
        "--max-length",
        type=whole_number(2),
        metavar="N",
        help="limit of prompt and response together, in tokens (default 1024, or the model's "
        "limit)",
    )
    parser.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="skip and count unusable rows; without it, such a row is an error",
    )


def run(args: argparse.Namespace) -> int:
    """Score every row and print the number of rows."""
    from rpo.api import score
    from rpo.runtime.output import print_result

    result = score(
        data=args.data,
        out=args.out,
        max_length=args.max_length,
        skip_bad_rows=args.skip_bad_rows,
        **model_options(args),
    )
    text = f"written to {args.out}: {count(result.n_rows, 'row')}\n"
    if args.group.is_first:
        print_result(result.to_dict(), text, as_json=args.json)
    return result.exit_code
