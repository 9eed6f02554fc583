"""Environments of programs: real ones, built by the real uv and by pip from wheels that the test writes."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from infra.compute.runner import environments
from infra.compute.runner.environments import MARKER, OWN_PYTHON, build
from infra.compute.runner.exits import RunnerError
from infra.requirements import resolve
from infra.settings import set_variables
from tests.pipeline import ROOT, wait_until
from tests.wheels import Wheels

pytestmark = pytest.mark.slow


@pytest.fixture
def lock(tmp_path: Path) -> str:
    """The list of `alpha`, which needs `beta`; uv and pip know these two alone."""
    wheels = Wheels(tmp_path)
    wheels.add("beta", "1.5")
    wheels.add("alpha", "1.0", ["beta>=1"])
    set_variables(**wheels.environment)
    return resolve(["alpha"], None, tmp_path / "lists")


def output(command: list[str | Path]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def nobody_builds(line: str) -> None:
    raise AssertionError(f"it was built again: {line}")


def test_it_is_built_once_with_exactly_what_is_listed(tmp_path: Path, lock: str) -> None:
    folder, told = tmp_path / "environments", list[str]()
    environment = build(lock, None, folder, False, told.append)
    assert told[0].startswith("Building an environment for Python 3.")
    assert "packages: 2;" in told[0]
    python = environment / "bin" / "python"
    code = "import alpha, beta, sys; print(alpha.VERSION, beta.VERSION, sys.prefix)"
    assert output([python, "-c", code]) == f"1.0 1.5 {environment}"
    # Under the name that it was built with, its scripts would look for a Python that is gone.
    assert output([environment / "bin" / "alpha-version"]) == "1.0"
    assert subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode != 0
    for same in (None, OWN_PYTHON, f"{OWN_PYTHON}.99"):
        assert build(lock, same, folder, False, nobody_builds) == environment
    assert build("", None, folder, False, told.append) != environment
    assert {path.suffix for path in folder.iterdir()} == {"", ".lock"}

    # Rebuilt, it takes the old one's place; so does one that was not finished, or whose Python is gone.
    (environment / "mine.txt").touch()
    for damaged in (None, environment / MARKER, python):
        if damaged:
            damaged.unlink()
        told.clear()
        assert build(lock, None, folder, damaged is None, told.append) == environment
        assert len(told) == 2
        assert output([environment / "bin" / "alpha-version"]) == "1.0"
    assert not (environment / "mine.txt").exists()


def test_one_that_cannot_be_built_is_said_why_and_leaves_nothing(tmp_path: Path, lock: str) -> None:
    folder = tmp_path / "environments"
    other = re.sub(r"sha256:\w{4}", "sha256:0000", lock)
    unknown = f"beta==7 --hash=sha256:{'0' * 64}"
    for text, python, said in ((other, None, "[Hh]ash"), (lock, "3.2", "Python 3.2"), (unknown, None, "beta")):
        with pytest.raises(RunnerError, match=said) as refused:
            build(text, python, folder, False, lambda line: None)
        assert len(str(refused.value).splitlines()) <= 9
    assert {path.suffix for path in folder.iterdir()} == {".lock"}


def test_without_uv_pip_builds_the_same(tmp_path: Path, lock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests' own environment has uv; a node's need not.
    monkeypatch.setattr(environments, "find_uv", lambda: None)
    environment = build(lock, None, tmp_path / "environments", False, lambda line: None)
    assert output([environment / "bin" / "python", "-c", "import alpha, beta; print(beta.VERSION)"]) == "1.5"
    assert output([environment / "bin" / "alpha-version"]) == "1.0"
    assert build(lock, None, tmp_path / "environments", False, nobody_builds) == environment


def start(lock: str, folder: Path, uv: Path | None = None) -> subprocess.Popen[str]:
    """A process that builds the environment, with `uv` in place of the real one, and prints what it is told."""
    code = f"""
        from pathlib import Path
        from infra.compute.runner import environments
        if {str(uv or "")!r}:
            environments.find_uv = lambda: {str(uv)!r}
        tell = lambda line: print(line, flush=True)
        print(environments.build({lock!r}, None, Path({str(folder)!r}), False, tell), flush=True)
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def slow_uv(tmp_path: Path) -> Path:
    """The real uv, but where `hold` lies, it waits in the middle until that is gone; it leaves its pid in `pid`."""
    path = tmp_path / "slow-uv"
    real = environments.find_uv()
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = pip ]; then echo $$ > {tmp_path}/writing && mv {tmp_path}/writing {tmp_path}/pid\n'
        f'while [ -e {tmp_path}/hold ]; do sleep 0.05; done; fi\nexec {real} "$@"\n'
    )
    path.chmod(0o755)
    return path


def test_two_at_once_build_once(tmp_path: Path, lock: str, slow_uv: Path) -> None:
    (tmp_path / "hold").touch()
    first = start(lock, tmp_path / "environments", slow_uv)
    wait_until((tmp_path / "pid").exists, 30, "the first to build")
    second = start(lock, tmp_path / "environments")
    assert second.stdout is not None
    waiting = second.stdout.readline()
    (tmp_path / "hold").unlink()
    said = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    assert waiting.startswith("Waiting for another process")
    assert said[0][0].startswith("Building")
    assert said[1] == said[0][-1:]


def test_one_whose_builder_was_killed_is_built_again_and_never_by_two(tmp_path: Path, lock: str, slow_uv: Path) -> None:
    (tmp_path / "hold").touch()
    folder = tmp_path / "environments"
    killed = start(lock, folder, slow_uv)
    wait_until((tmp_path / "pid").exists, 30, "the first to build")
    killed.kill()
    killed.wait()
    # Its uv goes on by itself, and may still write.
    second = start(lock, folder)
    assert second.stdout is not None
    assert second.stdout.readline().startswith("Waiting for another process")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    said = second.communicate(timeout=60)[0].splitlines()
    assert said[0].startswith("Building")
    assert output([Path(said[-1]) / "bin" / "alpha-version"]) == "1.0"
    assert {path.suffix for path in folder.iterdir()} == {"", ".lock"}
