"""The process that loads models with Keras, as the runner asks it: Keras never is in the runner's own."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from .exits import RunnerError
from .process_tree import spare

_PACKAGE = Path(__file__).parent


class KerasProcess:
    """Is started by `start`, ahead of its use, or by the first question."""

    def __init__(self, scratch: Path) -> None:
        """`scratch` is where what the libraries say is kept, for the case that it ends."""
        self._log = scratch / "keras.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Let it import Keras, which takes some seconds of a core; returns at once."""
        if self._process is not None:
            return
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{_PACKAGE.name}.{Path(__file__).stem.replace('process', 'model')}"],
                cwd=_PACKAGE.parent,
                # On the CPU: a GPU has the program's memory in it, or another's.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
                | {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        spare(self._process.pid)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, see `keras_model.answer`. Raises `RunnerError` if the process ends instead."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise RunnerError(
                f"The process that was to load {request['path']} ended with exit status {self._process.wait()}:\n"
                + "\n".join(said or ["it said nothing"])
            )
        return dict(json.loads(line))

    def stop(self) -> None:
        """End it, if it was started."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
