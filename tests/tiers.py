"""What a test without the mark `slow` does not do, so that `make quick` takes seconds and asks for nothing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SERVERS = {"postgres", "ray", "rclone", "supervisord"}
"""Programs that are servers, or start some."""

SERVER_MODULES = {"infra.stack", "mlflow", "prefect"}
"""The same behind `python -m`."""

_held = False


@contextmanager
def kept_to(mark: bool) -> Iterator[None]:
    """Let the block start no server and import no TensorFlow, unless it bears the mark: who does fails."""
    global _held
    _held = not mark
    try:
        yield
    finally:
        _held = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if not _held:
        return
    if event == "import" and arguments[0] == "tensorflow":
        pytest.fail("it imports TensorFlow: mark it slow")
    if event == "subprocess.Popen":
        program, *words = (str(word) for word in arguments[1])
        module = words[words.index("-m") + 1] if "-m" in words else ""
        if Path(program).name in SERVERS or module in SERVER_MODULES:
            pytest.fail(f"it starts {Path(program).name} {module}: mark it slow")


sys.addaudithook(_refuse)
