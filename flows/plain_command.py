"""What commands that are no flow have in common: the flag that names a model, and how a failure is told."""

import argparse
import re

from infra import terminal
from infra.errors import PipelineError, UsageError
from tasks.champion import MODEL_NAME


def add_model_name(parser: argparse.ArgumentParser) -> None:
    """Add `--model-name`; what cannot be one is refused as the command line is read."""
    parser.add_argument(
        "--model-name", type=_model_name, default="keras-dnn-mnist", metavar="NAME", help="default %(default)s"
    )


def _model_name(text: str) -> str:
    if not re.fullmatch(MODEL_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no model's name: a letter, a digit or _, then dots and - too")
    return text


def failed(error: PipelineError, debug: bool) -> int:
    """The exit status of a command that failed with this error, which is told in its words; raises it for `debug`."""
    if debug:
        raise error
    terminal.say(f"{type(error).__name__}: {error}\n")
    return terminal.WRONG_USAGE if isinstance(error, UsageError) else 1
