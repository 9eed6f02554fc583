"""Runs a program of a person's, shipped beside it in the folder `program`, as that program's parent.

    python -m runner train ORDER_JSON
    python -m runner score ORDER_JSON
    python -m runner devices
    python -m runner --standby train|score

`--standby` starts the program's process, which imports what the program will need, prints `standing by` and waits for
its arguments: one line of JSON on stdin, `{"arguments": ["train", ORDER_JSON]}`. The process ends when its stdin does,
with all that it started, so it never outlives its caller.

The last words, an answer in a line of JSON or the reason of a failure, come behind a line of the character 0x1E.
Exit status: 0, or one of those in `exits.py`; 143 after SIGTERM, 130 after Ctrl-C.
"""

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED, RunnerError, UsageError
from .order import PROGRAM_FACTS, Program, parse_order, read_program
from .output import say, say_last, wait_until_written
from .process_tree import adopt_orphans
from .program_process import SECONDS_TO_STOP
from .stage import SOURCE, Stage
from .variables import MLFLOW_CLIENT

STANDING_BY = "standing by"
FOLDER = Path(__file__).parent

_HIDDEN = ("pandas", "scipy", "sklearn")
"""MLflow's client does without them, and takes 4.3 s to import with them instead of 3.0."""


class _Ending:
    """What is to be ended when this process is told to end."""

    stage: Stage | None = None

    def end(self, status: int, politely: bool) -> None:
        """End the program and this process."""
        if self.stage and self.stage.process:
            self.stage.process.stop(SECONDS_TO_STOP if politely else 0)
        os._exit(status)


def main(arguments: Sequence[str], ending: _Ending) -> int:
    """Do what the command line says; returns the exit status, having said what went wrong."""
    try:
        match arguments:
            case ["devices"]:
                _devices()
            case ["--standby", ("train" | "score") as command]:
                _run_program(command, None, ending)
            case [("train" | "score") as command, order]:
                _run_program(command, order, ending)
            case _:
                raise UsageError(
                    "Say what to do: train ORDER_JSON, score ORDER_JSON, devices, --standby train, or --standby score."
                )
    except Exception as error:
        unexpected = not isinstance(error, RunnerError)
        if unexpected:
            for line in traceback.format_exc().splitlines():
                say(line)
        say_last(f"{type(error).__name__}: {error}" if unexpected else str(error))
        return error.exit_status if isinstance(error, RunnerError) else EXIT_FAILED
    finally:
        wait_until_written()
    return 0


def _devices() -> None:
    from .devices import devices

    found = devices(_program().requirements is not None)
    say_last(json.dumps({"devices": found}))


def _program() -> Program:
    return read_program(FOLDER / PROGRAM_FACTS)


def _run_program(command: str, told: str | None, ending: _Ending) -> None:
    """Carry the order out that is `told`, or that comes on standard input; nothing if that ends before."""
    program = _program()
    adopt_orphans()
    # Its process first, for the program's libraries are slow to import, and ours are imported meanwhile.
    ahead = program.import_ahead if command == "train" else program.import_ahead_of_score
    ending.stage = stage = Stage(program, FOLDER / SOURCE, FOLDER.parent / "work", ahead)
    try:
        ours = _import_training() if command == "train" else importlib.import_module(f"{__package__}.scoring")
        if told is None:
            told = _wait_for_order(command, ending)
        if told is not None and command == "train":
            ours.Training(stage).run(parse_order(told))
        elif told is not None:
            ours.score(stage, ours.parse_score_order(told))
    finally:
        stage.stop()


def _import_training() -> ModuleType:
    for name, value in MLFLOW_CLIENT.items():
        os.environ.setdefault(name, value)
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
            importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        return importlib.import_module(f"{__package__}.training")
    finally:
        for name in hidden:
            del sys.modules[name]


def _wait_for_order(command: str, ending: _Ending) -> str | None:
    """The order that the caller sends, or None if it ends before; from then on its end is this process's."""
    say(STANDING_BY, phase="running")
    received = b""
    # Unbuffered: the thread below must be able to read on from the same place.
    while b"\n" not in received:
        chunk = os.read(0, 65_536)
        if not chunk:
            return None
        received += chunk
    try:
        asked, order = map(str, json.loads(received)["arguments"])
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError('Expected one line of JSON, {"arguments": ["train", ORDER_JSON]}, on stdin.') from error
    if asked != command:
        raise UsageError(f"Standing by for {command}, was asked for {asked!r}.")
    threading.Thread(target=_end_with_caller, args=[ending], daemon=True).start()
    return order


def _end_with_caller(ending: _Ending) -> None:
    while os.read(0, 65_536):
        pass
    ending.end(EXIT_TERMINATED, politely=False)


def _end_at_signals(ending: _Ending) -> None:
    """End at SIGTERM and Ctrl-C without delay, the program first.

    A Python handler would wait for what the main thread is doing. Nothing can be left half written that would be taken
    for whole: checkpoints and runs have marks that are written last.
    """
    statuses = {signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: EXIT_INTERRUPTED}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Written to at once; the handlers, which are called later, are only there for that.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in statuses:
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while (number := signal.Signals(os.read(reading, 1)[0])) not in statuses:
            pass
        ending.end(statuses[number], politely=True)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    everything = _Ending()
    _end_at_signals(everything)
    # Threads may be waiting for services, and have nothing left to do.
    os._exit(main(sys.argv[1:], everything))
