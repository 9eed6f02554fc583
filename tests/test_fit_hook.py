"""Scripts that know nothing of checkpoints, killed in the middle of their fits, with real Keras in real processes."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launched import ENVIRONMENT, Ended, Launched


def numbered(ended: Ended) -> list[tuple[int, int]]:
    return [(each["fit"], each["epoch"]) for each in ended.of("epoch")]


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    folder = tmp_path / "program"
    folder.mkdir()
    shutil.copy(Path(__file__).parent / "fits.py", folder)
    return Launched(folder, tmp_path)


def test_a_killed_script_goes_on_and_ends_as_it_would_have_without_the_hook(launched: Launched) -> None:
    plain = subprocess.run(
        [sys.executable, "fits.py"], cwd=launched.folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert plain.returncode == 7, plain.stderr
    shutil.rmtree(launched.folder / "own", ignore_errors=True)

    # In the middle of a fit; in a loop of fits; and after the last epoch of the last one.
    seen: list[tuple[int, int]] = []
    for kill_at in (("checkpoint", 4, 4), ("checkpoint", 9, 1), ("checkpoint", 15, 2), None):
        ended = launched.run("fits.py", import_ahead=("keras",), kill_at=kill_at)
        seen += [each for each in numbered(ended) if each[0] != 13 or kill_at]
        assert ended.returncode == (-9 if kill_at else 7)
        assert "keras-at-scale:" not in ended.stderr
    assert ended.stdout == plain.stdout
    assert len(seen) == len(set(seen)) == 30
    fits: dict[int, Any] = {each["fit"]: each for each in ended.of("fit")}
    assert fits[4] == {"fit": 4, "epochs": 5, "initial_epoch": 5}
