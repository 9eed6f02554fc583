"""A test that is not marked as slow needs no server and no TensorFlow."""

import subprocess
import sys

import pytest

from tests.s3_server import RCLONE


@pytest.mark.parametrize("command", [[RCLONE, "version"], [sys.executable, "-P", "-m", "prefect", "version"]])
def test_without_the_mark_it_starts_no_server(command: list[str]) -> None:
    with pytest.raises(pytest.fail.Exception, match="mark it slow"):
        subprocess.run(command, check=True)


def test_without_the_mark_it_imports_no_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with pytest.raises(pytest.fail.Exception, match="mark it slow"):
        import tensorflow  # noqa: F401


@pytest.mark.slow
def test_with_it_it_may(request: pytest.FixtureRequest) -> None:
    assert subprocess.run([RCLONE, "version"], capture_output=True, check=True).stdout.startswith(b"rclone")
