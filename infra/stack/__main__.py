"""Start the servers, UI and schedule in the foreground; Ctrl-C ends all of it. `make stack` does this.

State is kept under PIPELINE_HOME; ports: STACK_PREFECT_PORT, STACK_MLFLOW_PORT, STACK_STORE_PORT.
"""

import infra.process_environment  # noqa: F401  isort: skip

import fcntl
import os
import socket
import sys
import time

import psutil

from infra.errors import PipelineError, SettingsError, UsageError
from infra.settings import StackSettings, child_environment, load_stack_settings
from infra.stack import log
from infra.stack.parts import BIN, all_parts, prepare

PATIENCE_SECONDS = 60
"""A part that waits longer for another says so, and goes on waiting."""


def start(stack: StackSettings) -> None:
    """Become the process manager. Raises `SettingsError` before anything is started."""
    for name, port in stack.ports.items():
        _refuse_port_in_use(name, port)
    prepare(stack)
    # The manager opens stdout a second time, for the labelled lines: in a file, the one would overwrite the other.
    fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)
    command = [str(BIN / "supervisord"), "-c", str(stack.supervisor_configuration)]
    # What a relative path means changes with the folder, and the manager goes to the checkout.
    absolute = {"PIPELINE_HOME": str(stack.home), "STACK_POSTGRES_BIN": str(stack.postgres_programs or "")}
    os.execve(command[0], command, child_environment(**absolute))


def become(stack: StackSettings, name: str) -> None:
    """Wait for what a part needs, then become it."""
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
    _end_leftovers(stack.ports.get(name))
    os.execvpe(part.command[0], part.command, child_environment(**part.environment, PYTHONUNBUFFERED="1"))


def _refuse_port_in_use(name: str, port: int) -> None:
    with socket.socket() as probe:
        # As servers do: connections that have just ended are no reason.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return
        except OSError as error:
            refusal = error
    described = ", ".join(f"process {one.pid} ({one.name()})" for one in _listeners(port))
    raise SettingsError(
        f"Port {port} of 127.0.0.1, for {name}, is in use by {described or f'a process of another user ({refusal})'}.\n"
        f"Stop it, or choose another port: STACK_{name.upper()}_PORT=... make stack. Nothing was started."
    )


def _end_leftovers(port: int | None) -> None:
    """End what a part that was killed outright left listening: both servers' commands start a process that serves.

    Nobody else can have the port: it was free when the stack was started, and the part took it.
    """
    leftovers = [] if port is None else _listeners(port)
    for one in leftovers:
        one.kill()
    psutil.wait_procs(leftovers, timeout=10)


def _listeners(port: int) -> list[psutil.Process]:
    """The processes that listen on a TCP port, as far as this user may see them."""
    found = []
    for one in psutil.process_iter():
        try:
            connections = one.net_connections("tcp")
        except psutil.Error:
            continue
        if any(opened.status == "LISTEN" and opened.laddr[1:] == (port,) for opened in connections):
            found.append(one)
    return found


def main() -> int:
    """The command line; returns the exit status, unless the process has become another."""
    arguments = sys.argv[1:]
    try:
        if arguments == ["log"]:
            log.label_lines()
        elif arguments[:1] == ["part"]:
            become(load_stack_settings(), arguments[1])
        elif arguments:
            sys.stderr.write(f"{__doc__}\nIt takes no arguments.\n")
            return 2
        else:
            start(load_stack_settings())
    except PipelineError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
