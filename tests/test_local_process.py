"""What every compute must do, shown on this machine with programs of a few lines."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.background import in_background
from infra.compute import Job
from infra.compute.local_process import LocalProcess
from infra.compute.runner.devices import visible_gpus
from infra.errors import ComputeUnavailable, TrainingFailed
from infra.scratch import dead_folders
from infra.terminal import Stopped
from tests.pipeline import ROOT, still_running, wait_until


def program(folder: Path, body: str) -> Path:
    """A program that stands by as the training program does, and then does `body` with its `arguments`."""
    (folder / "toy").mkdir(parents=True, exist_ok=True)
    start = 'import json, os, sys, time\nprint("standing by", flush=True)\nline = sys.stdin.readline()\n'
    start += 'if not line: sys.exit()\narguments = json.loads(line)["arguments"]\n'
    (folder / "toy" / "__main__.py").write_text(start + textwrap.dedent(body))
    return folder / "toy"


@pytest.fixture
def compute(tmp_path: Path) -> Iterator[LocalProcess]:
    local = LocalProcess(tmp_path / "scratch", "cpu", {"ADDRESS": "here"})
    yield local
    local.release()
    assert list((tmp_path / "scratch").glob("*")) == []


def test_it_says_what_it_got(compute: LocalProcess) -> None:
    description = compute.provision()
    assert description.accelerator == "cpu"
    assert description.cpu_cores >= 1
    assert description.memory_bytes > 1e8
    assert "cores" in str(description)


@pytest.mark.skipif(bool(visible_gpus()), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComputeUnavailable, match="nvidia-smi lists no device"):
        LocalProcess(tmp_path, "gpu", {}).provision()


def test_output_comes_line_by_line_while_the_job_runs(compute: LocalProcess, tmp_path: Path) -> None:
    toy = program(tmp_path, 'print("one", flush=True)\nwhile not os.path.exists(arguments[1]): time.sleep(0.01)')
    lines = compute.run(Job(toy, ("train", str(tmp_path / "go"))))
    assert [next(lines), next(lines)] == ["standing by", "one"]
    (tmp_path / "go").touch()
    assert list(lines) == []


def test_the_program_gets_its_arguments_and_the_environment_and_a_folder_of_its_own(
    compute: LocalProcess, tmp_path: Path
) -> None:
    toy = program(tmp_path, 'print(arguments, os.environ["ADDRESS"], os.getcwd(), file=sys.stderr)')
    *_, said = compute.run(Job(toy, ("train", "--flag=a b", "it's")))
    assert said.startswith("""['train', '--flag=a b', "it's"] here""")
    assert str(tmp_path / "scratch") in said


def test_released_it_ends_the_jobs_of_other_threads(compute: LocalProcess, tmp_path: Path) -> None:
    toy = program(tmp_path, f"open({str(tmp_path / 'runs')!r}, 'w').close()\ntime.sleep(600)")
    job = in_background(lambda: list(compute.run(Job(toy, ("train",)))))
    wait_until((tmp_path / "runs").exists, 60, "the job")
    compute.release()
    with pytest.raises(Stopped):
        job.result(30)


@pytest.mark.parametrize(("body", "told"), [("sys.exit(3)", "exit status 3"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
def test_a_job_that_fails_is_told_with_its_status(compute: LocalProcess, tmp_path: Path, body: str, told: str) -> None:
    with pytest.raises(TrainingFailed, match=told):
        list(compute.run(Job(program(tmp_path, body), ("train",))))


def test_an_abandoned_job_is_stopped_with_all_that_it_started(compute: LocalProcess, tmp_path: Path) -> None:
    body = """
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(os.getpid(), child.pid, flush=True)
        time.sleep(600)
    """
    lines = compute.run(Job(program(tmp_path, body), ("train",)))
    next(lines)
    processes = [psutil.Process(int(pid)) for pid in next(lines).split()]
    lines.close()  # type: ignore[attr-defined]
    # A signal is on its way when kill() returns, and who is nobody's child is waited for by nobody.
    wait_until(lambda: still_running(processes) == [], 5, "the end of what was killed")


def test_a_job_that_ignores_sigterm_is_killed(compute: LocalProcess, tmp_path: Path) -> None:
    body = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    )
    lines = compute.run(Job(program(tmp_path, body), ("train",)))
    next(lines)
    process = psutil.Process(int(next(lines)))
    lines.close()  # type: ignore[attr-defined]
    assert still_running([process]) == []


def test_what_it_leaves_in_its_temporary_folder_is_gone_with_the_job(compute: LocalProcess, tmp_path: Path) -> None:
    body = "import tempfile\nprint(tempfile.mkdtemp(), flush=True)\nos.kill(os.getpid(), 9)"
    lines = compute.run(Job(program(tmp_path, body), ("train",)))
    next(lines)
    folder = Path(next(lines))
    assert tmp_path / "scratch" in folder.parents
    with pytest.raises(TrainingFailed):
        next(lines)
    assert not folder.exists()


def test_nothing_but_the_files_of_the_program_is_shipped(compute: LocalProcess, tmp_path: Path) -> None:
    toy = program(tmp_path, "print(sorted(os.listdir('toy')))")
    (toy / "needed.json").touch()
    (toy / ".env").write_text("PASSWORD=secret")
    assert list(compute.run(Job(toy, ("train",))))[1] == "['__main__.py', 'needed.json']"


def test_a_standing_by_program_that_was_edited_meanwhile_is_not_used(compute: LocalProcess, tmp_path: Path) -> None:
    toy = program(tmp_path, 'print("old")')
    compute.stand_by(toy, "train")
    program(tmp_path, 'print("new")')
    assert list(compute.run(Job(toy, ("train",)))) == ["standing by", "new"]


def test_release_ends_what_stands_by_and_may_be_called_twice(compute: LocalProcess, tmp_path: Path) -> None:
    others = set(psutil.Process().children())
    compute.stand_by(program(tmp_path, ""), "train")
    started = list(set(psutil.Process().children()) - others)
    assert len(started) == 1
    compute.release()
    compute.release()
    assert still_running(started) == []


def test_a_program_ends_with_a_caller_that_is_killed_outright(tmp_path: Path) -> None:
    toy = program(tmp_path, "print(os.getpid(), flush=True)\nsys.stdin.readline()")
    caller = f"""
        import sys
        from pathlib import Path
        from infra.compute import Job
        from infra.compute.local_process import LocalProcess
        job = Job(Path({str(toy)!r}), ("train",))
        for line in LocalProcess(Path({str(tmp_path / "scratch")!r}), "cpu", {{}}).run(job):
            print(line, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(caller)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"standing by\n"
    job = psutil.Process(int(process.stdout.readline()))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: still_running([job]) == [], 10, "the program's end")
    process.stdout.close()
    (left,) = dead_folders(tmp_path / "scratch")
    LocalProcess(tmp_path / "scratch", "cpu", {}).provision()
    assert not left.exists()
