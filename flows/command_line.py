"""A flow at the terminal: its parameters as flags, its outcome as lines or JSON, its failures as a few lines."""

import argparse
import copy
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import prefect
from prefect import Flow
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from flows.prefect_server import check_reachable, server_of_its_own
from infra import terminal
from infra.addresses import without_secrets
from infra.errors import PipelineError, UsageError
from infra.waiting import told_when_slow
from tasks.cancellation import ANSWER_SECONDS, UNREACHABLE, stopped_itself, told_by_prefect

DONE, FAILED = 0, 1
SECONDS_FOR_THE_END = 40.0
"""For Prefect's server to take how a run ended; one that is just started again needs 30. A temporary one is not."""
SECONDS_WHEN_TOLD = 1.5
"""The same, of a run that was told to stop."""
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
        parser.error(wrong_flags(error))


def wrong_flags(error: ValidationError) -> str:
    """Each wrong flag with what it was given and what is wrong with that."""
    return "; ".join(f"--{_flag(one['loc'][-1])} {one['input']}: {one['msg']}" for one in error.errors())


def run_from_terminal(flow: Flow[..., Any], before: Callable[[Mapping[str, Any]], None], show: Any) -> None:
    """Run `flow` with the flags of this process and exit with its status.

    `before(parameters)` is called ahead of the flow, and `show(outcome)` prints what it returned.
    """
    options = options_model(flow)
    parser = parser_of(options, inspect.getdoc(inspect.getmodule(flow.fn)) or "")
    given = parser.parse_args()
    chosen = parse(options, parser, given)
    parameters = {name: getattr(chosen, name) for name in options.model_fields}

    def act() -> Any:
        check_reachable()
        before(parameters)
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
    """What the flow returned or raised, even if Prefect's server, at the end, is away, hangs, or has lost the run."""
    server = server_of_its_own()
    run = _Run(flow)
    retries = {PREFECT_CLIENT_MAX_RETRIES: 1} if server else {}  # If it has died, it does not come back.
    try:
        with temporary_settings(retries), run.told_of_prefect():
            try:
                flow(**parameters)
            except (*UNREACHABLE, terminal.OutOfTime):
                raise
            except Exception:
                _hand_over()
                raise
            _hand_over()
    except (*UNREACHABLE, terminal.OutOfTime) as error:
        if server:
            server.kill()  # It may hang, and would stay.
        if run.failures:
            raise run.failures[0] from None
        if not run.outcomes:
            raise
        why = "its server does not answer" if isinstance(error, terminal.OutOfTime) else told_by_prefect(error)
        terminal.say(f"\nPrefect does not know that this run ended well: {why}\n")
    return run.outcomes[0]


class _Run:
    """A run of `flow`, whose end Prefect's server, if it hangs, holds up no longer than it may."""

    def __init__(self, flow: Flow[..., Any]) -> None:
        self.outcomes: list[Any] = []
        self.failures: list[Exception] = []
        self._waiting = ExitStack()
        body = flow.fn

        @wraps(body)
        def noted(**parameters: Any) -> Any:
            # Prefect's engine has put its own reaction to SIGTERM in place, by which a second one interrupts what the
            # first one began.
            terminal.interruptible()
            terminal.limit_when_told(0)
            self._waiting.close()
            try:
                self.outcomes.append(body(**parameters))
            except Exception as error:
                self.failures.append(error)
                raise
            else:
                # From here on Prefect's engine takes for a failure of the run what its server does not take.
                logger = logging.getLogger("prefect.flow_runs")
                logger.addFilter(_no_error)
                self._waiting.callback(logger.removeFilter, _no_error)
            finally:
                self._wait("note how the run ended", SECONDS_FOR_THE_END if PREFECT_API_URL.value() else ANSWER_SECONDS)
            return self.outcomes[0]

        flow.fn = noted

    def _wait(self, attempt: str, seconds: float) -> None:
        if PREFECT_API_URL.value() or self.outcomes or self.failures:  # That a temporary one starts is said already.
            self._waiting.enter_context(told_when_slow("Prefect's server", attempt))
        terminal.limit(seconds)
        if not stopped_itself.is_set():  # Then nobody waits for the prompt.
            terminal.limit_when_told(SECONDS_WHEN_TOLD)

    @contextmanager
    def told_of_prefect(self) -> Iterator[None]:
        """Around the flow: what is in the block, but for the flow's own steps, waits for Prefect's server."""
        try:
            self._wait("begin the run", 0)
            yield
        finally:
            terminal.limit(0)
            terminal.limit_when_told(0)
            self._waiting.close()


def _no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _hand_over() -> None:
    """Wait until Prefect's server has what it was told last, lines and the states of steps, or time is up."""
    with suppress(terminal.OutOfTime):
        APILogWorker.drain_all(at_exit=False)


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
    logging.raiseExceptions = False  # Prefect's handler tells of each line that a server did not take.

    told: set[str] = set()

    def wanted(record: logging.LogRecord) -> bool:
        place = Path(record.pathname)
        if Path(prefect.__file__).parent not in place.parents:
            return True
        # Prefect tells of each step that a stopped run leaves, as of a crash; and of each event that a server did not
        # take, which nobody misses of one that ends with the run, and once is enough of any other.
        if terminal.was_told():
            return False
        if place.parent.name not in ("events", "concurrency"):
            return True
        again = str(record.msg) in told
        told.add(str(record.msg))
        return not again and PREFECT_API_URL.value() is not None

    for handler in (*logging.getLogger().handlers, *logging.getLogger("prefect._internal").handlers):
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
