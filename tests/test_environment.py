"""What make builds the environment from."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("GPU 0: NVIDIA L4 (UUID: GPU-0)", ["requirements.lock", "requirements-cuda.lock"]),
        ("No devices were found", ["requirements.lock"]),
        (None, ["requirements.lock"]),
    ],
)
def test_nvidias_libraries_are_installed_where_the_driver_shows_a_gpu(
    tmp_path: Path, listed: str | None, expected: list[str]
) -> None:
    # Stands in for the driver, for a machine has a GPU or has none.
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\necho '{listed}'\n" if listed else "#!/bin/sh\nexit 9\n")
    driver.chmod(0o755)
    told = subprocess.run(
        # The stamp of this environment, which is there, is passed over: what would be done is asked.
        ["make", "--dry-run", "--always-make", "train"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    (built,) = [line for line in told.stdout.splitlines() if "build_environment.sh" in line]
    assert built.split()[3:] == expected
