"""What starts, watches and ends the parts of `make stack`, without waiting for all of them."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.lock import hold, is_held
from infra.settings import load_settings
from infra.stack.__main__ import _refuse_port_in_use, start
from infra.stack.parts import all_parts, prepare
from infra.stack.settings import load_stack_settings
from tests.pipeline import descendants, still_running, wait_until
from tests.stack import ROOT, SECONDS_TO_STOP, Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@contextmanager
def started(stack: Stack, until: str) -> Iterator[subprocess.Popen[bytes]]:
    """The stack's manager once its log has `until`; nothing of it is left afterwards, whatever the block does."""
    with (stack.folder / "stack.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.stack"],
            cwd=ROOT,
            env={**os.environ, **stack.given},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: re.search(until, stack.log) is not None, 100, f"{until!r} in {stack.folder}/stack.log")
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(SECONDS_TO_STOP)


@pytest.fixture
def quick_stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """One that nobody waits for; in a folder with a short name, for PostgreSQL's socket is in it."""
    return Stack(tmp_path_factory.mktemp("quick"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_told_to_end_while_it_starts_it_leaves_nothing_running(quick_stack: Stack, number: signal.Signals) -> None:
    with started(quick_stack, "spawned: 'deploy'") as process:
        parts = descendants(process.pid)
        assert len(parts) > 6
        os.killpg(process.pid, number)
        assert process.wait(SECONDS_TO_STOP) == 0
        assert not still_running(parts)
    # Of a terminal that was closed nobody reads.
    assert ("Ending the stack" in quick_stack.log) == (number != signal.SIGHUP)
    assert "Traceback" not in quick_stack.log


@pytest.mark.skipif(sys.platform != "linux", reason="no other kernel tells a process of its parent's death")
def test_a_manager_that_is_killed_outright_takes_its_parts_along(quick_stack: Stack) -> None:
    with started(quick_stack, "ready to accept connections") as process:
        parts = descendants(process.pid)
        process.kill()
        wait_until(lambda: not still_running(parts), 20, "the parts to end")


def test_only_what_the_stack_started_is_ended(tmp_path: Path) -> None:
    """A server of somebody else at the same port, of another address of this machine."""
    stack = Stack(tmp_path)
    (stack.settings.folder / "store" / "pipeline").mkdir(parents=True)
    listener = [
        sys.executable,
        "-c",
        "import socket, sys; s = socket.create_server(('127.0.0.2', int(sys.argv[1]))); input()",
    ]
    port = str(stack.settings.store_port)
    part = [sys.executable, "-m", "infra.stack", "part", "store"]
    environment = {**os.environ, **stack.given}
    with (
        subprocess.Popen([*listener, port], stdin=subprocess.PIPE) as others,
        hold(stack.settings.lock, on_wait=lambda _: None),
        subprocess.Popen(part, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as store,
    ):
        try:
            wait_until(lambda: all_parts(stack.settings)["store"].answers(), 60, "the store to answer")
            assert others.poll() is None
        finally:
            store.terminate()
            others.terminate()


def test_a_port_in_use_is_told_with_its_owner_and_nothing_is_started(quick_stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", quick_stack.settings.ports["prefect"])):
        asked = [sys.executable, "-m", "infra.stack"]
        environment = {**os.environ, **quick_stack.given}
        refused = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    port = quick_stack.settings.ports["prefect"]
    assert refused.returncode == 2
    assert f"Port {port} of 127.0.0.1, for prefect, is in use by process {os.getpid()} (" in refused.stderr
    assert "spawned" not in refused.stdout
    assert not quick_stack.settings.supervisor_configuration.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another person")
def test_a_port_that_another_person_uses_is_told_with_that_persons_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        # That person's process must not have it as well.
        said = as_another_person(lambda: listening.close() or _refuse_port_in_use("prefect", port))  # type: ignore[func-returns-value]
    assert said.startswith(f"SettingsError: Port {port} of 127.0.0.1, for prefect, is in use by a process of root.\n")


def test_the_log_goes_where_stdout_cannot_be_opened_again(quick_stack: Stack) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.stack"],
            cwd=ROOT,
            env={**os.environ, **quick_stack.given},
            stdout=theirs.fileno(),
            stderr=theirs.fileno(),
            start_new_session=True,
        )
    ours.settimeout(100)
    said = b""
    with ours:
        try:
            while not re.search(rb"(?m)^postgres +\|", said):
                said += ours.recv(65_536)
        finally:
            process.terminate()
            assert process.wait(SECONDS_TO_STOP) == 0
        while more := ours.recv(65_536):
            said += more
    assert b"Ending the stack" in said
    assert b"making dispatchers" not in said


def matches(pattern: re.Pattern[str], path: Path) -> bool:
    return path.exists() and pattern.search(path.read_text()) is not None


def test_a_part_that_keeps_dying_is_told_with_its_last_lines(tmp_path: Path) -> None:
    program = "import sys, time; time.sleep(0.2); sys.exit('PermissionError: /tmp/runner_storage')"
    configuration = tmp_path / "supervisord.conf"
    configuration.write_text(
        f"""
[supervisord]
nodaemon = true
logfile = {tmp_path}/supervisor.log
pidfile = {tmp_path}/pid
{"user = root" if os.geteuid() == 0 else ""}
[eventlistener:log]
command = {sys.executable} -m infra.stack log
events = PROCESS_LOG,PROCESS_STATE_BACKOFF,PROCESS_STATE_EXITED,PROCESS_STATE_FATAL
stderr_logfile = {tmp_path}/said
[program:worker]
command = {sys.executable} -c "{program}"
startsecs = 0
redirect_stderr = true
stdout_events_enabled = true
[program:hopeless]
command = {sys.executable} -c "raise SystemExit('no such database')"
startsecs = 5
startretries = 2
redirect_stderr = true
stdout_events_enabled = true
"""
    )
    said = tmp_path / "said"
    with subprocess.Popen(
        [str(Path(sys.executable).with_name("supervisord")), "-c", str(configuration)],
        cwd=ROOT,
        env={**os.environ, "PIPELINE_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    ) as manager:
        try:
            for told, lines in {
                r"stack +\| worker has ended 2 times in \d s, and is started again\. .*worker\.log:": "runner_storage",
                r"stack +\| hopeless is given up, for it cannot be started\. .*": "no such database",
            }.items():
                pattern = re.compile(rf"{told}\n(stack +\|     .*\n)*stack +\|     .*{lines}")
                wait_until(partial(matches, pattern, said), 30, told)
        finally:
            manager.terminate()


@pytest.mark.parametrize("variable", ["STACK_PREFECT_URL", "STACK_MLFLOW_URL", "STACK_STORE_URL"])
@pytest.mark.parametrize(
    "wrong", ["prefect.example.org", "https://user:pw@x.org", "https://x.org/prefect", "ftp://x.org", "https://X.org"]
)
def test_an_address_that_no_browser_would_name_is_refused(variable: str, wrong: str) -> None:
    with pytest.raises(SettingsError, match=variable) as refused:
        load_stack_settings({variable: wrong})
    assert "pw" not in str(refused.value)


def test_a_public_address_is_the_clients_and_loopback_stays_open(tmp_path: Path) -> None:
    given = {"PIPELINE_HOME": str(tmp_path), "STACK_MLFLOW_URL": "https://mlflow.example.org/"}
    stack = load_stack_settings(given)
    assert stack.mlflow_url == "https://mlflow.example.org"
    assert stack.addresses("mlflow") == ("http://127.0.0.1:5000", "https://mlflow.example.org")
    assert stack.addresses("prefect") == ("http://127.0.0.1:4200",)


def test_keys_are_made_once_and_stack_env_is_private(quick_stack: Stack) -> None:
    quick_stack.settings.folder.mkdir(parents=True)
    prepare(quick_stack.settings)
    first = quick_stack.settings.environment_path.read_text()
    prepare(quick_stack.settings)
    assert quick_stack.settings.environment_path.read_text() == first
    assert quick_stack.settings.environment_path.stat().st_mode & 0o777 == 0o600
    keys = re.findall(r"PREFECT_API_AUTH_STRING=pipeline:(\S{40})|MLFLOW_TRACKING_PASSWORD=(\S{40})", first)
    assert len({*keys[0], *keys[1]} - {""}) == 2


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that everyone may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_another_person(what: Callable[[], object]) -> str:
    """What a process of another user says of it."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(65534)
            os.write(writing, repr(what()).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reading, 4000).decode()
    os.close(reading)
    os.close(writing)
    return said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another person")
def test_the_home_of_another_person_is_told_with_its_owner(shared_folder: Path) -> None:
    (shared_folder / "home" / "stack").mkdir(parents=True)
    given = {"PIPELINE_HOME": str(shared_folder / "home")}
    told = (
        f"SettingsError: PIPELINE_HOME is {{}}, and you may not write to {shared_folder}{{}}, which belongs to root.\n"
    )
    assert as_another_person(lambda: load_settings(given)).startswith(told.format(shared_folder / "home", "/home"))
    new = {"PIPELINE_HOME": str(shared_folder / "new")}
    assert as_another_person(lambda: load_settings(new)).startswith(told.format(shared_folder / "new", ""))
    # One that a group may write to: its files may still be somebody's alone.
    (shared_folder / "home").chmod(0o777)
    assert as_another_person(lambda: load_settings(given)).startswith("Settings(")
    lock = shared_folder / "home" / "locks" / "mine.lock"
    with hold(lock, on_wait=lambda _: None):
        said = as_another_person(lambda: hold(lock, print).__enter__())
        assert said.startswith(f"SettingsError: The lock {lock} cannot be opened: {lock} belongs to root.\n")
        assert as_another_person(lambda: is_held(lock)) == "True"
    said = as_another_person(lambda: start(load_stack_settings(given)))
    assert said.startswith(f"SettingsError: {shared_folder}/home/stack belongs to root, and a stack is started by its")
