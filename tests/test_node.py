"""What a node builds for a job whose versions it does not have: real environments, of small packages."""

import json
import os
import re
import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from infra.compute import Workload
from infra.compute.ray_job import LOCK, make_package
from infra.requirements import locked
from tests.http_server import serving

pytestmark = pytest.mark.slow

# Jinja2 needs MarkupSafe, which nobody names.
REQUIREMENTS = tuple(f"{name}=={version(name)}" for name in ("fsspec", "jinja2"))


class Node:
    """A node with a bare Python, and the package of a job there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job = folder / "job"
        self.job.mkdir()
        program = folder / "program"
        program.mkdir()
        venv.create(folder / "python", symlinks=True)
        told = {"folder": str(folder / "store"), "tracking_uri": "http://127.0.0.1:9", "lease_seconds": 10}
        workload = Workload(program, "train", REQUIREMENTS, "training-x", {"WORD": "hush"})
        make_package(self.job, workload, False, **told)
        self.request = json.loads((self.job / "request.json").read_text())

    def damage(self, kind: str, package: str, pattern: str, replacement: str) -> None:
        """Put something else where `pattern` is found in what a list says of a package."""
        parts = re.split(r"(?m)^(?=\S)", self.request[kind])
        assert any(part.startswith(f"{package}==") for part in parts)
        changed = [re.sub(pattern, replacement, p) if p.startswith(f"{package}==") else p for p in parts]
        self.request[kind] = "".join(changed)

    def run(self, **variables: str) -> dict[str, object]:
        """Run the node's part to its end, a refusal; what it has told the flow."""
        (self.job / "request.json").write_text(json.dumps(self.request))
        command = [str(self.folder / "python" / "bin" / "python"), "-m", "runner.node"]
        caches = {"PIP_CACHE_DIR": self.folder.parent / "pip", "UV_CACHE_DIR": self.folder.parent / "uv"}
        environment = {
            **os.environ,
            "HOME": str(self.folder),
            "PATH": "/usr/bin:/bin",
            **{name: str(path) for name, path in caches.items()},
            **variables,
        }
        done = subprocess.run(command, cwd=self.job, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 70, done.stdout + done.stderr
        said: dict[str, object] = {}
        for line in (line[1:] for line in done.stdout.split("\n") if line.startswith("\x1d")):
            what, _, facts = line.partition(" ")
            said[what] = f"{said.get(what, '')}{json.loads(facts)}\n" if what == "environment" else json.loads(facts)
        return said

    @property
    def environments(self) -> list[Path]:
        """Those that are whole, without that of uv."""
        kept = self.folder / ".cache" / "keras-at-scale" / "environments"
        return [path.parent for path in kept.glob("*/.complete") if not (path.parent / "bin" / "uv").exists()]


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("node"))


def test_the_environment_of_the_locks_is_built_once_and_used(node: Node) -> None:
    said = node.run()
    assert f"the node's Python lacks {', '.join(REQUIREMENTS)}" in str(said["environment"])
    # It has come as far as the store, with fsspec: here is no flow.
    assert "finds no lease.json" in str(said["refused"])
    assert not (node.job / "request.json").exists(), "it has secrets"
    (environment,) = node.environments
    installed = {path.name for path in environment.glob("lib/*/site-packages/*.dist-info")}
    assert installed == {f"{name}-{version(name)}.dist-info" for name in ("fsspec", "jinja2", "markupsafe")}
    assert "Building" not in str(node.run()["environment"])


@pytest.mark.parametrize(("kind", "package"), [("uv", "uv"), ("lock", "jinja2"), ("lock", "markupsafe")])
def test_a_package_whose_bytes_the_lock_does_not_know_is_refused_by_name(node: Node, kind: str, package: str) -> None:
    node.damage(kind, package, "sha256:....", "sha256:0000")
    refused = str(node.run()["refused"])
    assert re.search(rf"\b{package}\b", refused), refused
    assert re.search(r"hash mismatch|do not match the hashes", refused, re.IGNORECASE), refused
    assert len(refused) < 1200
    assert node.environments == []


def test_a_package_that_the_lock_does_not_name_is_refused_by_name(node: Node) -> None:
    text = "".join(part for part in re.split(r"(?m)^(?=\S)", LOCK.read_text()) if not part.startswith("markupsafe=="))
    node.request["lock"] = locked(REQUIREMENTS, text)
    refused = str(node.run()["refused"])
    assert re.search(r"hash.*markupsafe", refused, re.DOTALL | re.IGNORECASE), refused
    assert node.environments == []


def test_an_environment_of_the_programs_own_that_cannot_be_built_is_told(node: Node) -> None:
    listed = f"alpha==1.0 --hash=sha256:{'0' * 64}\n"
    facts = {"name": "x", "command": ["python", "x.py"], "requirements": {"python": None, "lock": listed}}
    (node.job / "runner" / "program.json").write_text(json.dumps(facts))
    (node.folder / "store").mkdir()
    (node.folder / "store" / "lease.json").write_text("{}")
    with serving({}) as mlflow:
        node.request["tracking_uri"] = mlflow.address
        refused = str(node.run()["refused"])
    assert "The program's environment" in refused
    assert "alpha" in refused
