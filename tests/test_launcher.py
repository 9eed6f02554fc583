"""The launcher: a program in it cannot tell that it is not run by plain Python."""

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launched import ENVIRONMENT, Launched, Process
from tests.pipeline import wait_until

SCRIPTS = {
    "says what it is": (
        "import sys, os, json\n"
        "import seeds, keras_fit, launcher_neighbour\n"
        "class Local: pass\n"
        "import pickle; pickle.dumps(Local())\n"
        "print(sys.argv, sys.path[0], __name__, os.path.abspath(__file__), __package__, __spec__, seeds.WHOSE)\n"
        "print(sys.modules['__main__'].__dict__ is globals(), repr(sys.stdin.read()), sorted(globals()))\n"
    ),
    "fails": (
        "def f():\n    try:\n        1 / 0\n    except ZeroDivisionError as error:\n"
        "        raise KeyError('x') from error\nf()\n"
    ),
    "has a syntax error": "x = (\n\ny ==\n",
    "exits 3": "import sys\nsys.exit(3)\n",
    "exits with a word": "raise SystemExit('no data')\n",
    "has its own excepthook": "import sys\nsys.excepthook = lambda *e: print('mine', e[0])\n1 / 0\n",
    "is interrupted": "raise KeyboardInterrupt\n",
    "says so at exit": "import atexit\n@atexit.register\ndef last():\n    print(name)\nname = 'still there'\n",
    "imports what is not there": "import no_such_package\n",
}


def plain(folder: Path, *command: str) -> tuple[int, str, str]:
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    folder = tmp_path / "my program"
    (folder / "src").mkdir(parents=True)
    for name in ("seeds", "keras_fit", "launcher_neighbour"):
        (folder / "src" / f"{name}.py").write_text("WHOSE = 'the program'\n")
    return Launched(folder, tmp_path)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_runs_as_with_plain_python(launched: Launched, script: str) -> None:
    (launched.folder / "src" / "train.py").write_text(script)
    ended = launched.run("src/train.py", "--epochs", "5", seed=1)
    assert (ended.returncode, ended.stdout, ended.stderr) == plain(launched.folder, "src/train.py", "--epochs", "5")
    assert [event["event"] for event in ended.events] == ["ready", "imported"]


def test_a_module_a_package_a_missing_file_and_a_command_do_too(launched: Launched) -> None:
    package = launched.folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import sys\nfrom . import part\nprint(sys.argv, sys.path[0], __spec__.name)\n"
    )
    (package / "part.py").write_text("import sys\nif len(sys.argv) > 1: 1 / 0\n")
    for arguments in ([], ["fails"]):
        ended = launched.run("package", *arguments, module=True)
        assert (ended.returncode, ended.stdout, ended.stderr) == plain(launched.folder, "-m", "package", *arguments)
    ended = launched.run("no_such_module", module=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == plain(launched.folder, "-m", "no_such_module")
    ended = launched.run("no_such_file.py")
    assert (ended.returncode, ended.stdout, ended.stderr) == plain(launched.folder, "no_such_file.py")
    ended = launched.run("sh", "-c", "echo $0 $CHECKPOINT_FOLDER; exit 4", "word", command=True)
    assert (ended.returncode, ended.stdout) == (4, f"word {launched.scratch / 'checkpoints'}\n")
    assert launched.run("sh", "-c", "kill -9 $$", command=True).returncode == -9
    assert launched.run("no-such-command", command=True).returncode == 127


def test_the_group_ends_with_the_runner_and_lines_come_at_once(launched: Launched) -> None:
    """Before the order, and while the program is busy; a child that outlives it does not hold the runner up."""
    out, err = launched.scratch / "out", launched.scratch / "err"
    with Process(launched.folder, (), ENVIRONMENT, out, err) as process:
        assert next(process.events()) == {"event": "ready"}
        process.leave()
        assert process.popen.wait(10) != 0
    (launched.folder / "busy.py").write_text(
        "import subprocess, time\nchild = subprocess.Popen(['sleep', '60'])\n"
        "orphan = subprocess.getoutput('setsid sleep 61 >/dev/null 2>&1 & echo $!')\n"
        "print(child.pid, orphan)\nwhile True: pass\n"
    )
    with Process(launched.folder, (), ENVIRONMENT, out, err) as process:
        process.give({"argv": ["busy.py"], "module": False, "environment": ENVIRONMENT, "hook": False, "seed": None})
        wait_until(lambda: out.read_text().endswith("\n"), 10, "the line")
        process.leave()
        assert process.popen.wait(10) < 0
        for pid in out.read_text().split():
            one = Path("/proc") / pid / "stat"
            wait_until(lambda one=one: not one.exists() or one.read_text().split()[2] == "Z", 10, "its end")  # type: ignore[misc]
    (launched.folder / "forks.py").write_text("import subprocess\nsubprocess.Popen(['sleep', '5'])\n")
    began = time.monotonic()
    assert launched.run("forks.py").returncode == 0
    assert time.monotonic() - began < 4


def test_the_order_sets_the_environment_and_seeds_what_is_imported(launched: Launched) -> None:
    (launched.folder / "draws.py").write_text(
        "import os, random, sys\nprint(dict(os.environ)['WORD'], 'numpy' in sys.modules, random.random())\n"
        "import numpy as np\nprint(np.random.rand())\n"
    )
    environment = {**ENVIRONMENT, "WORD": "of the order"}
    draws = [launched.run("draws.py", seed=seed, environment=environment) for seed in (3, 3, 4, None)]
    assert all("of the order False" in each.stdout for each in draws)
    assert draws[0].stdout == draws[1].stdout != draws[2].stdout
    ahead = launched.run("draws.py", seed=3, environment=environment, import_ahead=("numpy", "no_such_package"))
    assert ahead.stdout == draws[0].stdout.replace("False", "True")
    packages = ahead.of("imported")[0]["packages"]
    assert packages["numpy"] == importlib.metadata.version("numpy")
    assert not packages.keys() & {"keras", "mlflow", "pytest"}
    assert os.environ.get("WORD") is None


def test_a_module_of_the_program_is_imported_ahead_and_what_it_imported_is_told_at_a_hard_end(
    launched: Launched,
) -> None:
    (launched.folder / "package").mkdir()
    (launched.folder / "package" / "__init__.py").write_text("")
    (launched.folder / "package" / "ahead.py").write_text("import os, numpy\nprint('ahead', 'WORD' in os.environ)\n")
    (launched.folder / "package" / "__main__.py").write_text(
        "import os, sys\nprint('package.ahead' in sys.modules, sys.path.count(os.getcwd()), flush=True)\n"
        "child = os.fork()\nif child == 0: os._exit(0)\nos.waitpid(child, 0)\nos._exit(5)\n"
    )
    environment = {**ENVIRONMENT, "WORD": "of the order"}
    ended = launched.run("package", module=True, import_ahead=("package.ahead",), environment=environment)
    assert (ended.returncode, ended.stdout) == (5, "ahead False\nTrue 1\n")
    (told,) = ended.of("imported")
    assert told["packages"]["numpy"] == importlib.metadata.version("numpy")
