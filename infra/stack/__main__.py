"""Start the servers, UI and schedule in the foreground; Ctrl-C ends all of it. `make stack` does this.

State is kept under PIPELINE_HOME. STACK_PREFECT_PORT, STACK_MLFLOW_PORT, STACK_STORE_PORT and STACK_SERVICE_PORT choose
the ports, STACK_PREFECT_URL, STACK_MLFLOW_URL and STACK_STORE_URL say where else they are reached: see docs/stack.md.
"""

import infra.process_environment  # noqa: F401  isort: skip

import signal

if __name__ == "__main__":
    # Nothing runs yet that would have to be ended: Python would show where it was.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import ctypes
import fcntl
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
from supervisor.medusa.asyncore_25 import ExitNow
from supervisor.options import ServerOptions
from supervisor.supervisord import Supervisor

from infra.errors import PipelineError, SettingsError, UsageError
from infra.lock import hold, is_held, owner
from infra.settings import child_environment, set_variables
from infra.stack import log
from infra.stack.parts import all_parts, prepare
from infra.stack.settings import StackSettings, load_stack_settings

PATIENCE_SECONDS = 60
"""A part that waits longer for another says so, and goes on waiting."""

SECONDS_TO_COPY = 5
"""For the last lines of the log, where they are copied."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Ctrl-C, a request, a terminal that was closed, Ctrl-\\."""


def _heard() -> list[signal.Signals]:
    """The signals that end the stack; started by `nohup`, it outlives its terminal."""
    return [one for one in ENDING if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]


class _Options(ServerOptions):  # type: ignore[misc]
    """supervisor's, but a closed terminal ends it: by itself it would start everything anew, for nobody."""

    def setsignals(self) -> None:
        told = _heard()
        super().setsignals()
        for number in ENDING:
            signal.signal(number, self._end if number in told else signal.SIG_IGN)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            # Whatever is written to a terminal that is gone fails.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        elif signal.SIGTERM not in self.signal_receiver._signals_recvd:
            os.write(1, b"Ending the stack: the flow runs first, then the servers. It takes up to 30 s.\n")
        self.signal_receiver.receive(signal.SIGTERM, frame)


def start(stack: StackSettings) -> None:
    """Manage the parts' processes until told to end. Raises `SettingsError` before anything is started."""

    def stopped(number: int, _: FrameType | None) -> NoReturn:
        sys.stderr.write("Stopped before anything was started.\n")
        sys.exit(128 + number)

    for number in _heard():
        signal.signal(number, stopped)
    _refuse_folder_of_another(stack)
    with hold(stack.lock, on_wait=lambda holder: _refuse_second(stack, holder)), ExitStack() as leaving:
        for name, port in stack.ports.items():
            _refuse_port_in_use(name, port)
        prepare(stack)
        leaving.enter_context(_stdout_that_opens_again())
        options = _Options()
        options.realize(["-c", str(stack.supervisor_configuration)])
        options.first, options.test = True, False
        # What a relative path means changes with the folder, and the manager goes to the checkout.
        absolute = {"PIPELINE_HOME": str(stack.home), "STACK_POSTGRES_BIN": str(stack.postgres_programs or "")}
        set_variables(**absolute, TMPDIR=str(stack.temporary_folder))
        with suppress(ExitNow):
            Supervisor(options).main()
        options.close_httpservers()
        options.close_logger()


@contextmanager
def _stdout_that_opens_again() -> Iterator[None]:
    """The manager opens its stdout a second time by its path, for the labelled lines."""
    try:
        os.close(os.open("/dev/fd/1", os.O_WRONLY))
    except OSError:
        # A terminal of another user, as after `su`, or a socket: somebody copies what comes through a pipe.
        copier = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)
        assert copier.stdin
        os.dup2(copier.stdin.fileno(), 1)
        copier.stdin.close()
        try:
            yield
        finally:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with suppress(subprocess.TimeoutExpired):
                copier.wait(SECONDS_TO_COPY)
    else:
        # In a file, the one would overwrite the other.
        fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)
        yield


def become(stack: StackSettings, name: str) -> None:
    """Wait for what a part needs, then become it."""
    _end_with_the_manager(stack)
    parts = all_parts(stack)
    for needed in parts[name].needs:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not parts[needed].answers():
            if time.monotonic() > deadline:
                sys.stdout.write(f"Waiting for {needed}, which does not answer yet\n")
                sys.stdout.flush()
                deadline += PATIENCE_SECONDS
            time.sleep(0.5)
    part = parts[name]
    os.execvpe(part.command[0], part.command, child_environment(**part.environment, PYTHONUNBUFFERED="1"))


def _end_with_the_manager(stack: StackSettings) -> None:
    """Have the kernel end this process, and what it becomes, if the manager is killed outright, where it does that."""
    if sys.platform == "linux":
        set_signal_at_parents_death = 1
        ctypes.CDLL(None).prctl(set_signal_at_parents_death, signal.SIGTERM)
    if not is_held(stack.lock):
        raise SettingsError("The stack has ended. Its parts are started by `make stack`, and not by hand.")


def _refuse_folder_of_another(stack: StackSettings) -> None:
    stack.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stack.folder.stat().st_uid != os.geteuid():
        raise SettingsError(
            f"{stack.folder} belongs to {owner(stack.folder)}, and a stack is started by its owner.\n"
            "Set PIPELINE_HOME to a folder of your own. Nothing was started."
        )
    # One of an earlier version, or a copy, may be open.
    stack.folder.chmod(0o700)


def _refuse_second(stack: StackSettings, holder: str) -> NoReturn:
    raise SettingsError(
        f"The stack of {stack.home} is running already ({holder}).\n"
        "Use that one, end it with Ctrl-C where it was started, or set PIPELINE_HOME to another folder. "
        "Nothing was started."
    )


def _refuse_port_in_use(name: str, port: int) -> None:
    with socket.socket() as probe:
        # As servers do: connections that have just ended are no reason.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return
        except OSError as error:
            refusal = error
    described = ", ".join(f"process {one.pid} ({one.name()})" for one in _listeners(port)) or _other_owner(port)
    raise SettingsError(
        f"Port {port} of 127.0.0.1, for {name}, is in use by {described or f'another ({refusal})'}.\n"
        f"Stop it, or choose another port: STACK_{name.upper()}_PORT=... make stack. Nothing was started."
    )


def _listeners(port: int) -> list[psutil.Process]:
    """The processes that listen on a TCP port where 127.0.0.1 is meant as well, as far as this user may see them."""
    found = []
    for one in psutil.process_iter():
        try:
            connections = one.net_connections("tcp")
        except psutil.Error:
            continue
        taken = [("127.0.0.1", port), ("0.0.0.0", port), ("::", port), ("::ffff:127.0.0.1", port)]
        if any(opened.status == "LISTEN" and tuple(opened.laddr) in taken for opened in connections):
            found.append(one)
    return found


def _other_owner(port: int) -> str:
    """Of a process that this user may not see, whose it is, where the kernel tells; empty: it does not."""
    listening = "0A"
    for table in ("tcp", "tcp6"):
        with suppress(OSError, LookupError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == listening and int(fields[1].rpartition(":")[2], 16) == port:
                    return f"a process of {pwd.getpwuid(int(fields[7])).pw_name}"
    return ""


def main() -> int:
    """The command line; returns the exit status, unless the process has become another."""
    arguments = sys.argv[1:]
    try:
        stack = load_stack_settings()
        if arguments == ["log"]:
            log.label_lines(stack.folder / "logs")
        elif arguments[:1] == ["part"]:
            become(stack, arguments[1])
        elif arguments:
            sys.stderr.write(f"{__doc__}\nIt takes no arguments.\n")
            return 2
        else:
            start(stack)
    except PipelineError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
