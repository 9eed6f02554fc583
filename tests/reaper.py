"""Whatever a run of the tests started ends with it, however it ends: a process of its own looks after that.

Everything that a test starts, and what that starts in its turn, inherits a variable with the run's name. It stays in
view after a process has left its group, its session and its parent.
"""

import os
import subprocess
import sys
import uuid

import psutil

VARIABLE = "RUN_OF_THE_TESTS"
"""The names of the runs that a process belongs to, with commas between."""

SECONDS_TO_END = 10.0


def watch() -> None:
    """Let all that this process starts from now on end within seconds of its own end."""
    run = uuid.uuid4().hex
    os.environ[VARIABLE] = ",".join(filter(None, [os.environ.get(VARIABLE), run]))
    # It ends with its stdin, of which we hold the other end without doing anything for it.
    subprocess.Popen([sys.executable, __file__, run], stdin=subprocess.PIPE, start_new_session=True)


def of_run(run: str) -> list[psutil.Process]:
    """The living processes of a run, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and run in process.environ().get(VARIABLE, ""):
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue  # It has ended meanwhile, or is another user's.
    return found


def end(run: str) -> None:
    """End the processes of a run: those that do not end when told to are killed."""
    told = of_run(run)
    for process in told:
        if process.is_running():
            process.terminate()
    psutil.wait_procs(told, SECONDS_TO_END)
    while left := [process for process in of_run(run) if process.status() != psutil.STATUS_ZOMBIE]:
        for process in left:
            if process.is_running():
                process.kill()
        psutil.wait_procs(left, SECONDS_TO_END)


if __name__ == "__main__":
    sys.stdin.read()
    end(sys.argv[1])
