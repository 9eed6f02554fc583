"""MLflow in a process of its own, so that its import waits for nothing and nothing waits for it.

MLflow's import keeps a core busy for 1.5 to 2.6 s, and Prefect's for as long. In one interpreter the two take turns;
in two processes the second is free of charge on any machine with two cores.
"""

import atexit
import contextlib
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from infra.errors import TrackerError, TrackerUnreachable
from infra.experiment_tracker import ExperimentTracker
from infra.settings import PROJECT_ROOT, Settings, child_environment, load_settings


class TrackerProcess(ExperimentTracker):
    """An `ExperimentTracker` whose calls to MLflow are made by a child process, one for all of this process.

    Arguments and answers travel pickled. The child ends with us, however we end. Should it end before us, another takes
    its place and repeats the calls that were not answered; those that must not be done twice raise `TrackerError`.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._settings = settings

    def hurry(self) -> None:
        """Give up, in a moment, what calls are under way, of whatever thread; and make none from then on.

        For a process that was told to stop, and has its last words to say to an MLflow that may hang.
        """
        _hurried.set()
        Thread(target=_stop_soon, name="MLflow's end", daemon=True).start()


LOCAL = ("check_reachable", "hurry", "run_url", "version_url")
"""What needs no MLflow, and is answered here."""


SECONDS_TO_HURRY = 1.5

NOT_TWICE = ("start_run", "create_version", "log_metrics")
"""What would be there twice if it had been done, all but the answer."""


class _ChildEnded(TrackerUnreachable):
    """The child ended before it answered."""


def _in_the_child(name: str) -> Callable[..., Any]:
    def call(self: TrackerProcess, *args: Any, **kwargs: Any) -> Any:
        try:
            return _child().call(self._settings, name, args, kwargs)
        except _ChildEnded:
            if name in NOT_TWICE or _hurried.is_set():
                raise
            return _child().call(self._settings, name, args, kwargs)

    return call


for _name, _member in vars(ExperimentTracker).items():
    if callable(_member) and not _name.startswith("_") and _name not in LOCAL:
        setattr(TrackerProcess, _name, _in_the_child(_name))


class _Child:
    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            # -P, for what is imported must not depend on the folder that we are in. A session of its own, so that
            # Ctrl-C in the terminal reaches us alone, and the run's last status is still written. Its stdout is our
            # stderr: ours may carry JSON.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                env=child_environment(PYTHONPATH=str(PROJECT_ROOT)),
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._numbers = count()
        self._owed: dict[int, Future[Any]] = {}
        self._lock = Lock()
        self._requests: SimpleQueue[bytes] = SimpleQueue()
        # Sent and received by threads: Ctrl-C interrupts the main thread alone, which may be anywhere in a call, and
        # half a message would garble all that follow.
        for work in (self._send, self._receive):
            Thread(target=work, name="MLflow's process", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def call(self, settings: Settings, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = next(self._numbers)
        answer: Future[Any] = Future()
        with self._lock:
            self._owed[number] = answer
        self._requests.put(pickle.dumps((number, settings, name, args, kwargs)))
        if self.has_ended:
            self._give_up()
        return answer.result()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection.send_bytes(self._requests.get())

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, value, error = self._connection.recv()
                with self._lock:
                    answer = self._owed.pop(number)
                if error is None:
                    answer.set_result(value)
                else:
                    answer.set_exception(error)
        self._process.wait()
        self._give_up()

    def _give_up(self) -> None:
        with self._lock:
            owed = list(self._owed.values())
            self._owed.clear()
        for answer in owed:
            answer.set_exception(
                _ChildEnded(
                    f"The process that speaks to MLflow (pid {self._process.pid}) ended with exit status "
                    f"{self._process.returncode} before it answered.\nRun the same command again."
                )
            )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


_hurried = Event()
_started: list[_Child] = []
_start_lock = Lock()


def start() -> None:
    """Start the child if there is none, without waiting for it; it begins at once to import MLflow."""
    _child()


def _child() -> _Child:
    with _start_lock:
        if _hurried.is_set() and (not _started or _started[-1].has_ended):
            raise TrackerError("MLflow was not asked, for this process was told to stop.")
        if not _started or _started[-1].has_ended:
            _started.append(_Child())
            # Not left to the end of our connection: who looks after our end finds nothing that is just ending.
            atexit.register(_started[-1].stop)
        return _started[-1]


def _stop_soon() -> None:
    time.sleep(SECONDS_TO_HURRY)
    for child in _started:
        child.stop()


def _serve(connection: Connection) -> None:
    trackers: dict[Settings, ExperimentTracker] = {}

    def answer(number: int, settings: Settings, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # MLflow's modules import each other in circles, which two threads that import cannot do at the same time.
        importing.join()
        try:
            tracker = trackers.setdefault(settings, ExperimentTracker(settings))
            reply = pickle.dumps((number, getattr(tracker, name)(*args, **kwargs), None))
        except Exception as error:
            reply = pickle.dumps((number, None, _portable(error)))
        with sending:
            connection.send_bytes(reply)

    sending = Lock()
    importing = Thread(target=_import_ahead, daemon=True)
    importing.start()
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            # In the middle of whatever is being done, as if it had been done by the process that has ended: its locks
            # are open, and its next attempt may have begun.
            os._exit(0)
        Thread(target=answer, args=request, daemon=True).start()


def _import_ahead() -> None:
    # What is wrong, with the settings or with MLflow, is said by the flow and by its first call.
    with contextlib.suppress(Exception):
        ExperimentTracker(load_settings()).import_mlflow()


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = TrackerError(f"{type(error).__name__}: {error}")
    error.add_note("".join(traceback.format_exception(error)))
    return error


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
