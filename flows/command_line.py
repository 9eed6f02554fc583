"""A flow at the terminal: its parameters as flags, its outcome as lines or JSON, its failures as a few lines."""

import argparse
import copy
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import prefect
from prefect import Flow
from prefect.settings import PREFECT_API_URL
from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from flows.prefect_server import check_reachable
from infra import terminal
from infra.addresses import without_secrets
from infra.errors import PipelineError, UsageError
from tasks.cancellation import UNREACHABLE, told_by_prefect

DONE, FAILED = 0, 1
STOPPED = "Stopped. Run the same command again: it continues where this one ended."


def options_model(flow: Flow[..., Any]) -> type[BaseModel]:
    """The parameters of `flow` as a pydantic model: the declaration behind the flags, as it is behind the form."""
    hints = get_type_hints(flow.fn, include_extras=True)
    parameters = inspect.signature(flow.fn).parameters
    return create_model(flow.name, **{name: (hints[name], field.default) for name, field in parameters.items()})  # type: ignore[call-overload,no-any-return]


def parser_of(options: type[BaseModel], description: str) -> argparse.ArgumentParser:
    """A flag for each field of `options`, those of nested models among them."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, field in _flat_fields(options).items():
        add_flag(parser, name, field)
    parser.add_argument("--json", action="store_true", help="One JSON object on stdout, everything else on stderr.")
    parser.add_argument("--debug", action="store_true", help="Show tracebacks and debug messages.")
    return parser


def parse(options: type[BaseModel], parser: argparse.ArgumentParser, given: argparse.Namespace) -> BaseModel:
    """The validated options; leaves with status 2 and a line per wrong flag."""
    flat = {name: value for name, value in vars(given).items() if value is not None}
    values: dict[str, Any] = {}
    for name, field in options.model_fields.items():
        if _is_model(field):
            values[name] = {inner: flat[inner] for inner in field.annotation.model_fields if inner in flat}  # type: ignore[union-attr]
        elif name in flat:
            values[name] = flat[name]
    try:
        return options.model_validate(values)
    except ValidationError as error:
        wrong = (f"--{_flag(problem['loc'][-1])} {problem['input']}: {problem['msg']}" for problem in error.errors())
        parser.error("; ".join(wrong))


def run_from_terminal(flow: Flow[..., Any], before: Any, show: Any) -> None:
    """Run `flow` with the flags of this process and exit with its status.

    `before(**parameters)` is called ahead of the flow, and `show(outcome)` prints what it returned.
    """
    options = options_model(flow)
    parser = parser_of(options, inspect.getdoc(inspect.getmodule(flow.fn)) or "")
    given = parser.parse_args()
    chosen = parse(options, parser, given)
    parameters = {name: getattr(chosen, name) for name in options.model_fields}

    def act() -> Any:
        check_reachable()
        before(**parameters)
        return outcome_of(flow, parameters)

    run_parsed(act, show, given, parser)


def run_parsed(act: Callable[[], Any], show: Any, given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Do what was asked and exit with the status; `show(outcome)` is what a person is told of what `act` returned.

    The outcome has `as_dict` for `--json`; this flag and `--debug` are among those `given`.
    """
    if given.json and "stdout" in terminal.closed:
        parser.error("--json writes to stdout, which is closed")
    if not given.debug:
        _quiet_tracebacks()
    terminal.run(partial(_run, act, show, given), STOPPED)


def _run(act: Callable[[], Any], show: Any, given: argparse.Namespace) -> int:
    try:
        outcome = act()
    except PipelineError as error:
        if given.debug or terminal.was_told():
            raise
        terminal.say(f"\n{type(error).__name__}: {error}\n")
        return terminal.WRONG_USAGE if isinstance(error, UsageError) else FAILED
    except Exception as error:
        if given.debug or terminal.was_told():
            raise
        terminal.say(
            f"\nUnexpected {type(error).__name__}: {without_secrets(str(error))}\n"
            "Run the same command again; if it fails again, --debug shows where.\n"
        )
        return FAILED
    terminal.say(show(outcome))
    if given.json:
        sys.stdout.write(json.dumps(outcome.as_dict()) + "\n")
    return DONE


def outcome_of(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> Any:
    """What the flow returned, even if Prefect's server, at the end, is away or knows nothing of the run any more."""
    outcomes: list[Any] = []
    body = flow.fn

    @wraps(body)
    def noted(**parameters: Any) -> Any:
        # Prefect's engine has put its own reaction to SIGTERM in place, by which a second one interrupts what the
        # first one began.
        terminal.interruptible()
        outcomes.append(body(**parameters))
        return outcomes[0]

    flow.fn = noted
    if PREFECT_API_URL.value() is None:
        # The whole server, and most of Prefect, is imported.
        from flows.temporary_server import TemporaryServer, check_disk

        check_disk()
        TemporaryServer()
    try:
        flow(**parameters)
    except UNREACHABLE as error:
        if not outcomes:
            raise
        terminal.say(f"\nPrefect does not know that this run ended well: {told_by_prefect(error)}\n")
    return outcomes[0]


class _FirstLine(logging.Formatter):
    """Shows a failure by its first line: Prefect logs it with its traceback at each level of the run, and the
    whole message comes once, at the end."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        shown = copy.copy(record)  # The original goes to the Prefect API as well, and there it stays whole.
        if record.levelno >= logging.ERROR:
            shown.msg, shown.args = re.split(r"\n|\\n", record.getMessage())[0], ()
            shown.exc_info = shown.exc_text = shown.stack_info = None
        return self._inner.format(shown)


def _quiet_tracebacks() -> None:
    def wanted(record: logging.LogRecord) -> bool:
        # Prefect tells of each step that a stopped run leaves, as of a crash.
        return not (terminal.was_told() and Path(prefect.__file__).parent in Path(record.pathname).parents)

    for handler in logging.getLogger().handlers:
        handler.addFilter(wanted)
        if handler.formatter:
            handler.setFormatter(_FirstLine(handler.formatter))


def _flat_fields(options: type[BaseModel]) -> dict[str, FieldInfo]:
    flat: dict[str, FieldInfo] = {}
    for name, field in options.model_fields.items():
        if _is_model(field):
            flat |= _flat_fields(field.annotation)  # type: ignore[arg-type]
        else:
            flat[name] = field
    return flat


def _is_model(field: FieldInfo) -> bool:
    return inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)


def _flag(name: Any) -> str:
    return str(name).replace("_", "-")


def add_flag(parser: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    """Add the flag of a field: a switch, a choice, or a word that is checked later."""
    description = field.description or ""
    if field.annotation is bool:
        parser.add_argument(f"--{_flag(name)}", action="store_true", default=None, help=description)
        return
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
    parser.add_argument(
        f"--{_flag(name)}",
        choices=choices,
        metavar=None if choices else "VALUE",
        help=f"{description}{_default(field)}".replace("%", "%%"),
    )


def _default(field: FieldInfo) -> str:
    return f" Default {field.default}{_bounds(field)}." if field.default is not None else ""


def _bounds(field: FieldInfo) -> str:
    found = [
        f"; {words} {getattr(bound, kind)}"
        for kind, words in (("ge", "at least"), ("gt", "above"), ("le", "at most"))
        for bound in field.metadata
        if hasattr(bound, kind)
    ]
    return "".join(found)
