"""The flag by which commands are told of a registered model."""

import argparse
import re

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
