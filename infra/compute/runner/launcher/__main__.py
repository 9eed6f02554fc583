"""Runs in a program's own process: waits for the order, then becomes `python FILE ...` or `python -m MODULE ...`.

`python THIS_FOLDER '{"import_ahead": [...], "order_fd": N, "events_fd": M}'`, any Python from 3.9 on, the standard
library alone. It writes `{"event": "ready"}` to events_fd, and reads from order_fd one line of JSON:

    argv              the program and its arguments, as sys.argv is to be
    module            true: argv[0] is the name of a module
    command           true: argv is a command that is no Python program: it runs as a child, without hooks
    environment       all variables, in place of those there are
    hook, seed        whether fits and MLflow are watched; the seed, or null
    listed            {package: version} of the program's own environment, the names in lower case with dashes
    checkpoint_folder where the program's and the hook's checkpoints are
    run               {"run_id": ..., "logged": [[key, step], ...], "params": {name: value}}, or null
    old_spellings     {old: what it is today}, or null
    azureml           what the stand-in for Azure ML is told, and its folder `stand_in`; or null

As long as it lives, the end of order_fd means that nobody waits for it any more, and ends it at once with its process
group and, on Linux, all that it has started, directly or not.
Status, traceback and standard streams are those of plain Python. Nothing of ours is in `sys.modules` or `sys.path`,
so that no module of the program's can be taken for one of ours, nor the other way round.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import io
import json
import os
import queue
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib would be loaded for this alone


class Runner:
    """The other end of the two pipes."""

    def __init__(self, order_fd: int, events_fd: int) -> None:
        for fd in (order_fd, events_fd):
            # A child of the program's that outlives it must not look like the program.
            os.set_inheritable(fd, False)
        self._events_fd = events_fd
        self._writing = threading.Lock()
        self.curves: dict[str, set[tuple[int, float]]] = {}
        """By metric, epoch and value of each epoch of the fits that have ended: the runner has logged them."""
        self.link = ours("azureml_link").Link(self)
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Loaded now: at the end, what is being imported may hold locks.
        self._tree = ours("../process_tree")
        # What the program leaves in a session of its own would become the runner's child, and nobody's after that.
        self._tree.adopt_orphans()
        threading.Thread(target=self._read, args=(order_fd,), name="order", daemon=True).start()

    def _read(self, order_fd: int) -> None:
        with contextlib.suppress(OSError, ValueError), open(order_fd, "rb") as lines:
            for line in lines:
                self._answers.put(json.loads(line))
        self._tree.end_what_was_left(wait_seconds=0)
        # Only a group of our own: that of a person's shell is not ours to end.
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    def tell(self, event: str, **facts: Any) -> None:
        """Send an event. A runner that is gone is noticed by the other pipe."""
        left = (json.dumps({"event": event, **facts}) + "\n").encode()
        with self._writing, contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._events_fd, left) :]

    def answer(self) -> Any:
        """The next line of the runner's; waits for it."""
        return self._answers.get()


def warn(line: str) -> None:
    """Say it to the person who reads the program's log."""
    with contextlib.suppress(Exception):
        print(f"keras-at-scale: {line}", file=sys.stderr, flush=True)  # noqa: T201


def ours(name: str) -> types.ModuleType:
    """The module `name` beside this one, loaded without a trace in `sys.modules`."""
    module = types.ModuleType(f"launcher {name}")
    loader = importlib.machinery.SourceFileLoader(module.__name__, os.path.join(FOLDER, f"{name}.py"))  # noqa: PTH118
    exec(loader.get_code(module.__name__) or "", module.__dict__)
    return module


class AfterImport:
    """A finder that finds nothing itself, and acts when a module that it watches has been imported."""

    def __init__(self) -> None:
        self._actions: dict[str, list[Callable[[Any], None]]] = {}
        self._searching = threading.local()
        sys.meta_path.insert(0, self)

    def when(self, name: str, action: Callable[[Any], None]) -> None:
        """Call `action(module)` as soon as `name` has been imported, which may be now."""
        self._actions.setdefault(name, []).append(action)
        if name in sys.modules:
            self._act(action, sys.modules[name])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that the other finders give, whose loader acts afterwards."""
        if name not in self._actions or getattr(self._searching, "now", False):
            return None
        self._searching.now = True
        try:
            others = [finder for finder in sys.meta_path if finder is not self]
            found = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._searching.now = False
        loader = getattr(spec, "loader", None)
        with contextlib.suppress(AttributeError, TypeError):
            execute = loader.exec_module  # type: ignore[union-attr]

            def exec_module(module: Any) -> None:
                execute(module)
                for action in self._actions[name]:
                    self._act(action, module)

            # On the loader itself, which stays the one that Python's own tools know.
            loader.exec_module = exec_module  # type: ignore[union-attr]
        return spec

    @staticmethod
    def _act(action: Callable[[Any], None], module: Any) -> None:
        try:
            action(module)
        except Exception as error:
            warn(f"{module.__name__} is left as it is: {type(error).__name__}: {error}")


def become(argv: list[str], module: bool) -> None:
    """Run the program as `python` would: in a fresh `__main__`, which stays that until the process ends."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    sys.argv[:] = argv
    if module:
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        # What `python -m` itself calls; the public run_module gives the name `__main__` back at the end, under
        # the feet of threads and of what runs at exit.
        sys.argv[0] = "-m"
        runpy._run_module_as_main(argv[0])  # type: ignore[attr-defined]
    elif os.path.isdir(argv[0]):  # noqa: PTH112
        sys.path.insert(0, argv[0])
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
    else:
        path = os.path.abspath(argv[0])  # noqa: PTH100
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))  # noqa: PTH120
        main.__dict__.update(__file__=path, __cached__=None)
        main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
        try:
            with io.open_code(path) as file:
                source = file.read()
        except OSError as error:
            sys.stderr.write(f"{sys.executable}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}\n")
            raise SystemExit(2) from None
        exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)


def run_command(command: list[str]) -> None:
    """Run what is no Python program, and end as it ended."""
    try:
        status = subprocess.call(command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    raise SystemExit(status)


def hide_frames(error: BaseException | None, seen: set[int]) -> None:
    """Take the launcher's frames out of the traceback of `error` and of those behind it."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = _without_ours(error.__traceback__)
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        hide_frames(other, seen)


def _without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    files = [frame.tb_frame.f_code.co_filename for frame in frames]
    # The first frames are Python's own, that run this folder.
    first = files.index(__file__) if __file__ in files else 0
    kept = [frame for frame, file in zip(frames, files) if not file.startswith(FOLDER + os.sep)]  # noqa: B905
    kept = kept[first:]
    for frame, following in zip(kept, [*kept[1:], None]):  # noqa: B905  strict= is of Python 3.10
        frame.tb_next = following
    return kept[0] if kept else None


class Packages:
    """The distributions that are installed. Looked up before there is an order: it takes up to a second."""

    def __init__(self) -> None:
        self._installed: dict[str, tuple[str, set[str]]] = {}
        self._process = os.getpid()
        for distribution in importlib.metadata.distributions():
            with contextlib.suppress(Exception):
                modules = set(_top_levels(distribution))
                # Of several in sys.path the first is imported.
                self._installed.setdefault(str(distribution.metadata["Name"]), (distribution.version, modules))

    def tell(self, runner: Runner) -> None:
        """Tell the version of each of which a top-level module has been imported; a forked child tells nothing."""
        if os.getpid() != self._process:
            return
        loaded = {name.partition(".")[0] for name, module in list(sys.modules.items()) if module is not None}
        packages = {name: version for name, (version, modules) in self._installed.items() if loaded & modules}
        runner.tell("imported", packages=packages)

    def tell_others(self, listed: dict[str, str], runner: Runner, when: Callable[..., None]) -> None:
        """Have a package told as soon as it is imported, if it is here in another version than is listed."""
        for name, (version, modules) in self._installed.items():
            if listed.get(re.sub(r"[-_.]+", "-", name).lower(), version) != version:
                for module in modules:
                    when(module, lambda _, packages={name: version}: runner.tell("imported", packages=packages))

    def tell_at_exit(self, runner: Runner) -> None:
        """Tell them too where the program ends by `os._exit`, which runs nothing that stands at the end."""
        end = os._exit

        @functools.wraps(end)
        def _exit(status: int) -> Any:
            with contextlib.suppress(Exception):
                self.tell(runner)
            end(status)

        os._exit = _exit


def _top_levels(distribution: importlib.metadata.Distribution) -> Iterable[str]:
    # importlib.metadata.packages_distributions does this, from Python 3.10 on.
    listed = (distribution.read_text("top_level.txt") or "").split()
    if listed:
        return listed
    files = [file.parts for file in distribution.files or ()]
    names = {parts[0] if len(parts) > 1 else parts[0].partition(".")[0] for parts in files}
    return {name for name in names if name.isidentifier()}


def install(order: dict[str, Any], runner: Runner, packages: Packages) -> None:
    """Put the seeds and the hooks where the program's imports will meet them."""
    after = AfterImport()
    if order.get("seed") is not None:
        ours("seeds").install(order["seed"], after.when)
    if order.get("hook"):
        packages.tell_others(order.get("listed", {}), runner, after.when)
        ours("keras_fit").install(order["checkpoint_folder"], runner, after.when, warn, ours("model_state"))
        if order.get("run"):
            ours("mlflow_run").install(order["run"], runner, after.when, warn)
        if order.get("old_spellings"):
            ours("old_spellings").install(order["old_spellings"], runner, after.when, warn)
        if order.get("azureml"):
            ours("azureml_link").install(order["azureml"], runner.link, after.when, warn)


def import_ahead(names: list[str]) -> None:
    """Import these modules; those of the program are found in its folder, as `python -m` finds them."""
    folder = os.getcwd()  # noqa: PTH109
    sys.path.insert(0, folder)
    for name in names:
        # The program will meet the same error, where it can be understood.
        with contextlib.suppress(BaseException):
            importlib.import_module(name)
    sys.path.remove(folder)


def main() -> None:
    """Wait for the order and carry it out."""
    settings = json.loads(sys.argv[1])
    runner = Runner(settings["order_fd"], settings["events_fd"])
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != FOLDER]  # noqa: PTH100
    import_ahead(settings["import_ahead"])
    packages = Packages()
    runner.tell("ready")
    order = runner.answer()
    os.environ.clear()
    os.environ.update(order["environment"])
    os.environ["PYTHONUNBUFFERED"] = "1"
    time.tzset()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    try:
        if order.get("command"):
            run_command(order["argv"])
        else:
            install(order, runner, packages)
            packages.tell_at_exit(runner)
            become(order["argv"], order["module"])
    except BaseException as error:
        if not isinstance(error, SystemExit):
            show = sys.excepthook

            def excepthook(kind: Any, value: BaseException, trace: Any) -> None:
                hide_frames(value, set())
                show(kind, value, value.__traceback__)

            # Python itself ends the process for it, with all that belongs to that.
            sys.excepthook = excepthook
        raise
    finally:
        if not order.get("command"):
            try:
                packages.tell(runner)
            except Exception:
                warn("what was imported is not known: " + traceback.format_exc(limit=1).splitlines()[-1])


main()
