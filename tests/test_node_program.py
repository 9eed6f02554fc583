"""What a node builds for a job whose versions it does not have: real environments, of small packages."""

import json
import os
import re
import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from infra.compute.ray_cluster import LOCKS, NODE_PROGRAM

pytestmark = pytest.mark.slow

# Jinja2 needs MarkupSafe, which nobody names.
REQUIREMENTS = [f"{name}=={version(name)}" for name in ("fsspec", "jinja2")]


class Node:
    """A node with a bare Python, and the folder of a job there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = folder / "job"
        self.job.mkdir()
        (folder / "store").mkdir()
        venv.create(folder / "python", symlinks=True)
        for path in (NODE_PROGRAM, *LOCKS):
            (self.job / path.name).write_text(path.read_text())

    def damage_lock(self, package: str, pattern: str, replacement: str) -> None:
        """Put something else where `pattern` is found in what the lock says of a package."""
        lock = self.job / LOCKS[0].name
        parts = re.split(r"(?m)^(?=\S)", lock.read_text())
        assert any(part.startswith(f"{package}==") for part in parts)
        changed = [re.sub(pattern, replacement, p) if p.startswith(f"{package}==") else p for p in parts]
        lock.write_text("".join(changed))

    def run(self, requirements: list[str]) -> dict[str, object]:
        """Run the node program to its end, a refusal; what it has told the flow."""
        request = {
            "folder": str(self.folder / "store"),
            "tracking_uri": "http://127.0.0.1:9",
            "program": "none",
            "command": "train",
            "requirements": requirements,
            "gpu": False,
            "lease_seconds": 10,
        }
        (self.job / "request.json").write_text(json.dumps(request))
        command = [str(self.folder / "python" / "bin" / "python"), NODE_PROGRAM.name]
        caches = {"PIP_CACHE_DIR": self.folder.parent / "pip", "UV_CACHE_DIR": self.folder.parent / "uv"}
        environment = {**os.environ, "HOME": str(self.folder), **{name: str(path) for name, path in caches.items()}}
        done = subprocess.run(command, cwd=self.job, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 70, done.stdout + done.stderr
        said = [line[1:].partition(" ") for line in done.stdout.split("\n") if line.startswith("\x1d")]
        return {what: json.loads(facts) for what, _, facts in said}

    @property
    def environments(self) -> list[Path]:
        """Those that are whole."""
        kept = self.folder / ".cache" / "keras-at-scale" / "environments"
        return [path.parent for path in kept.glob("*/complete")]


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("node"))


def test_the_environment_of_the_locks_is_built_once_and_used(node: Node) -> None:
    said = node.run(REQUIREMENTS)
    assert str(said["environment"]).endswith(f"the node's Python lacks {', '.join(REQUIREMENTS)}")
    # It has come as far as the store, with fsspec: here is no flow.
    assert "finds no lease.json" in str(said["refused"])
    (environment,) = node.environments
    installed = {path.name for path in environment.glob("lib/*/site-packages/*.dist-info")}
    assert {f"{name}-{version(name)}.dist-info" for name in ("fsspec", "jinja2", "markupsafe", "uv")} <= installed
    assert str(node.run(REQUIREMENTS)["environment"]).endswith("built on this node before")


@pytest.mark.parametrize("package", ["uv", "jinja2", "markupsafe"])
def test_a_package_whose_bytes_the_lock_does_not_know_is_refused_by_name(node: Node, package: str) -> None:
    node.damage_lock(package, "sha256:....", "sha256:0000")
    refused = str(node.run(REQUIREMENTS)["refused"])
    assert re.search(rf"exit status \d+: .*\b{package}==", refused), refused
    assert re.search(r"hash mismatch|do not match the hashes", refused, re.IGNORECASE), refused
    assert len(refused) < 1200
    assert node.environments == []


def test_a_package_that_the_lock_does_not_name_is_refused_by_name(node: Node) -> None:
    node.damage_lock("markupsafe", r"(?s).*", "")
    refused = str(node.run(REQUIREMENTS)["refused"])
    assert "no trusted hash was provided for: `markupsafe`" in refused
    assert node.environments == []
