"""Every command ends as it is told to, whatever ends it, and whatever it was started without."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.errors import SettingsError
from infra.terminal import SIGNALS, STOPPED
from tests.pipeline import signal_group, wait_until
from tests.torture.services import small_disk

ROOT = Path(__file__).parent.parent

MAIN = """
import sys, threading, time
from infra import terminal

terminal.attach()

def main():
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        print("tidying up", flush=True)
        time.sleep(0.2)
        print("in order", flush=True)

def main_in_a_library():
    try:
        main()
    except BaseException as error:
        raise ValueError("a library's own name for it") from None

def main_with_a_thread():
    threading.Thread(target=time.sleep, args=(600,)).start()
    main()

terminal.run({main})
"""


def start(code: str, **given: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **given,
    )


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("number", "main"),
    [*((number, "main") for number in SIGNALS), (15, "main_in_a_library"), (15, "main_with_a_thread")],
)
def test_a_signal_is_told_in_a_sentence_and_a_second_one_interrupts_nothing(number: int, main: str) -> None:
    process = start(MAIN.replace("{main}", main))
    assert next_line(process) == "ready"
    signal_group(process, number)
    assert next_line(process) == "tidying up"
    signal_group(process, number, signal.SIGINT, signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=20)
    assert stdout == "in order\n"
    assert stderr == f"\n{STOPPED}\n"
    assert process.returncode == 128 + number


def test_what_hangs_once_main_was_told_to_end_is_interrupted() -> None:
    code = """
def hanging():
    terminal.limit_when_told(2)
    try:
        main()
    finally:
        threading.Thread(target=time.sleep, args=(600,)).start()
        time.sleep(600)

terminal.run(hanging)
"""
    process = start(MAIN.partition("terminal.run(")[0] + code)
    assert next_line(process) == "ready"
    signal_group(process, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert (stdout, stderr) == ("tidying up\nin order\n", f"\n{STOPPED}\n")
    assert process.returncode == 130


def test_a_stop_that_was_lost_in_a_destructor_can_be_told_again() -> None:
    code = """
class Lossy:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(600)

def losing():
    Lossy()
    main()

terminal.run(losing)
"""
    process = start(MAIN.partition("terminal.run(")[0] + code)
    assert next_line(process) == "ready"
    signal_group(process, signal.SIGINT)
    assert next_line(process) == "ready"
    signal_group(process, signal.SIGINT)
    assert process.wait(20) == 130


def test_what_was_ignored_from_the_start_stays_so() -> None:
    process = start(MAIN.replace("{main}", "main"), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert next_line(process) == "ready"
    signal_group(process, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    signal_group(process, signal.SIGTERM)
    assert process.wait(20) == 143


COMMANDS = ("flows.train_mnist", "flows.promote", "flows.doctor", "flows.reconcile", "flows.deploy", "infra.compute")


def takes(process: psutil.Process, number: signal.Signals) -> bool:
    caught = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in line)
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what a process reacts to is read from /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_in_the_first_second_of_any_command_is_no_traceback(command: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", command],
        cwd=ROOT,
        env={**os.environ, "PIPELINE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # Of Python itself, no process reacts to it.
    wait_until(lambda: takes(psutil.Process(process.pid), signal.SIGTERM), 20, "the command", poll_seconds=0.001)
    signal_group(process, signal.SIGINT, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (stdout, stderr) == ("", f"\n{STOPPED}\n")
    assert process.returncode == 130


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_nobody_elses(closed: str, tmp_path: Path) -> None:
    code = f"""
import os, sys
from infra import terminal
terminal.attach()
def main():
    sys.stderr.write("x"), sys.stdout.write("x"), sys.stdin.read()
    with open({str(tmp_path / "file")!r}, "w") as file:
        file.write(str(file.fileno()))
    return 0
terminal.run(main)
"""
    subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], cwd=ROOT, check=True, input=b"")
    assert int((tmp_path / "file").read_text()) > 2


def test_json_is_refused_ahead_where_stdout_is_closed() -> None:
    line = '"$0" -m flows.train_mnist --json >&-'
    done = subprocess.run(["sh", "-c", line, sys.executable], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--json writes to stdout, which is closed" in done.stderr


def test_an_answer_that_nobody_reads_is_told_in_a_line() -> None:
    code = """
from infra import terminal
terminal.attach()
def main():
    input()
    print("answer")
    return 0
terminal.run(main)
"""
    process = start(code, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdin
    process.stdout.close()
    process.stdin.write("now\n")
    process.stdin.flush()
    assert process.stderr
    assert process.stderr.read() == "\nThe answer could not be written to stdout: Broken pipe.\n"
    assert process.wait(20) == 1


def test_a_command_whose_output_nobody_reads_ends_as_by_a_signal(tmp_path: Path) -> None:
    code = """
import subprocess
from infra import terminal
terminal.attach()
def main():
    child = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    child.wait()
    try:
        child.stdin.write(b"x"), child.stdin.flush()
    except BrokenPipeError:
        terminal.say("of another pipe: an error and no end\\n")
    try:
        while True:
            terminal.say("line\\n"), time.sleep(0.01)
    finally:
        terminal.say("nobody reads this\\n")
        with open(sys.argv[1], "w") as file:
            file.write("in order")
import sys, time
terminal.run(main)
"""
    file = tmp_path / "file"
    line = '{ "$0" -c "$1" "$2" 2>&1; echo "status $?" >&2; } | head -3'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, code, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["of another pipe: an error and no end", "line", "line"]
    assert done.stderr == "status 141\n"
    assert file.read_text() == "in order"


def test_a_full_disk_under_prefects_home_is_refused_ahead(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_HOME, temporary_settings

    from flows.temporary_server import check_disk

    with small_disk(tmp_path / "disk") as disk:
        if disk is None:
            pytest.skip("this user may not mount a file system")
        with temporary_settings({PREFECT_HOME: disk.folder / "prefect"}):
            check_disk()
            disk.fill()
            with pytest.raises(SettingsError, match=r"that disk has 0.0 MB free; it needs 20 MB"):
                check_disk()
            disk.empty()


def test_the_temporary_server_is_out_of_the_terminals_reach_and_ends_with_its_owner() -> None:
    code = """
import time
from flows.temporary_server import TemporaryServer
from prefect.server.api.server import SubprocessASGIServer
TemporaryServer()
server = SubprocessASGIServer()
server.port = server.find_available_port()
print(server._run_uvicorn_command().pid, flush=True)
time.sleep(600)
"""
    owner = start(code)
    server = psutil.Process(int(next_line(owner)))
    try:
        assert os.getpgid(server.pid) == server.pid
        assert os.getsid(server.pid) == server.pid
        assert server.is_running()
    finally:
        owner.kill()
        owner.communicate()
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 60, "the server's end")
