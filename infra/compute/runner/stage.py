"""Where a program runs: folders of its own, its variables, and its process, which is started ahead of its order."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .environments import build
from .order import Program
from .output import say
from .program_process import ProgramProcess
from .variables import first_variables

SOURCE = "program"
"""Folder beside the runner's modules, with the program's files."""


class Stage:
    """Of one program, below the folder `work`."""

    def __init__(self, program: Program, source: Path, work: Path, import_ahead: Sequence[str] = ()) -> None:
        """`source` holds the program's files. Its process starts at once, if its environment is that of this one."""
        self.program, self.source = program, source
        self._import_ahead = import_ahead
        shutil.rmtree(work, ignore_errors=True)  # Of an attempt in this place that was killed.
        self.scratch = work / "scratch"
        """The runner's own."""
        self.data = work / "data"
        self.checkpoints = work / "checkpoints"
        self._temporary = work / "tmp"
        for folder in (self.scratch, self.data, self.checkpoints, self._temporary):
            folder.mkdir(parents=True)
        self.folder = work / SOURCE
        """In which the program runs: its files, and what it makes of them."""
        shutil.copytree(source, self.folder)
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        """Of the program's events, and of what fails in threads of ours."""
        self.process: ProgramProcess | None = None
        self.python = Path(sys.executable)
        self.variables: dict[str, str] = {}
        """With which the program's process has started."""
        if program.requirements is None:
            self.start(self.python)

    def start(self, python: Path) -> None:
        """Start the program's process with this Python."""
        self.python = python
        self.variables = first_variables(self.program, str(python.parent), str(self._temporary))
        self.process = ProgramProcess(python, self.folder, self.variables, self._import_ahead, self.inbox)

    def build_environment(self, home: Path, rebuild: bool = False) -> None:
        """Start the program's process in an environment of its own, if it asks for one: see `environments.build`."""
        if wanted := self.program.requirements:
            built = build(wanted.lock, wanted.python, home / "environments", rebuild, say)
            self.start(built / "bin" / "python")

    @property
    def started(self) -> ProgramProcess:
        """The program's process."""
        assert self.process is not None, "it is started with the stage, or when its environment is there"
        return self.process

    def stop(self) -> None:
        """End the program's process, if there is one; at once."""
        if self.process:
            self.process.stop(wait_seconds=0)
