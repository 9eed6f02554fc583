"""The version that an alias names, brought here, tried, and handed to the service; and the next one, and so on.

A version is served once its files have the digests that its run logged, Keras loads them in safe mode with the weights
that the run names, and its input example is answered with the outputs that were logged with it. Another stays out, with
the reason in a tag of the version. The last one that was served is kept on this machine, for when MLflow is away.
"""

import json
import logging
import shutil
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.compute.runner.manifest import FileEntry, manifest_bytes, parse_manifest
from infra.errors import ArgumentError, ModelMismatch, PipelineError, TrackerError, TrackerUnreachable
from infra.experiment_tracker import Version
from infra.private_file import write_private
from infra.service.contract import BadRequest
from infra.service.network import Network
from infra.service.served import Served, Standing
from infra.services import Services
from tasks.registry.version import check_registrable
from tasks.saved_model import fetch_model, holds_exactly, model_files

LOGGER = logging.getLogger(__name__)

REFUSED = "service_refused"
"""Tag of a version: why the service did not take it the last time that it should have."""

SCORE_SCALE = "score_scale"
"""Tag of a run and its version: `/score` takes numbers from 0 to 1, and the model those times this."""

SECONDS_BETWEEN = 3.0
"""Two looks at the alias."""


@dataclass(frozen=True)
class Wanted:
    """What is to be served."""

    model_name: str
    alias: str
    folder: Path
    """Where its files are kept."""
    trust_code: bool


class ServedVersion:
    """Keeps `standing` to the version that the alias names. It never moves the alias."""

    def __init__(self, wanted: Wanted, standing: Standing, services: Services) -> None:
        self._wanted, self.standing, self._services = wanted, standing, services
        self._look_now = threading.Event()
        self._kept = wanted.folder / "kept.json"

    def begin(self) -> None:
        """Serve the version that the alias names or, where that cannot be, the last one that was.

        Raises `PipelineError` if there is neither; `ArgumentError` of it where the alias names none.
        """
        self.look()
        if self.standing.served is None and self._kept.is_file():
            self._serve_kept()
        if self.standing.served is not None:
            return
        name = f"{self._wanted.alias} of {self._wanted.model_name}"
        if self.standing.away:
            raise TrackerError(f"The {name} is unknown, and none was served here before.\n{self.standing.away}")
        for version, reason in self.standing.refused.items():
            raise ModelMismatch(f"The {name}, version {version}, cannot be served: {reason}")
        raise ArgumentError(
            f"There is no {name}.\nTrain one, make one {self._wanted.alias} (python -m flows.promote), or correct "
            "--model-name; with --wait the service begins with the first one."
        )

    def follow(self) -> None:
        """Look at the alias again and again, until the service ends."""
        while not self.standing.ending:
            if self._look_now.wait(SECONDS_BETWEEN):
                self._look_now.clear()
                self.standing.refused = {}  # Somebody may have mended it.
            self.look()

    def look_now(self) -> None:
        """Look at once, at what was refused too."""
        self._look_now.set()

    def look(self) -> None:
        """Look at the alias once, and change to the version that it names if that is another and can be served."""
        standing = self.standing
        try:
            version = self._services.tracker.version_by_alias(self._wanted.model_name, self._wanted.alias)
            served = standing.served
            if version and served and (version.version, version.run_id) == (served.version, served.run_id):
                standing.refused = {}
            elif version and version.version not in standing.refused:
                self._change_to(version)
            standing.away = None
        except Exception as error:  # Whatever it is, the service goes on with what it has.
            if standing.away is None:
                LOGGER.warning("Serving on without MLflow: %s", error)
            standing.away = str(error).partition("\n")[0] or type(error).__name__

    def _change_to(self, version: Version) -> None:
        try:
            served = self._bring(version)
        except TrackerUnreachable:
            raise
        except Exception as error:
            reason = " ".join((str(error) if isinstance(error, PipelineError) else repr(error)).split())
            self.standing.refused = {version.version: reason}
            LOGGER.error("Version %d of %s stays out: %s", version.version, version.name, reason)
            self._services.tracker.set_version_tags(version, {REFUSED: reason[:5_000]})
            return
        before, self.standing.served, self.standing.refused = self.standing.served, served, {}
        LOGGER.info(
            "Version %d of %s is served%s",
            *(version.version, version.name, f" in place of version {before.version}" if before else ""),
        )
        del before
        Network.forget()
        if version.tags.get(REFUSED):
            self._services.tracker.set_version_tags(version, {REFUSED: ""})

    def _bring(self, version: Version) -> Served:
        """The version, tried, and kept in the place of the one before; raises whatever is wrong with it."""
        served, files = bring(version, self._models(), self._wanted.trust_code, self._services)
        before = self.standing.served
        if before and _shapes(before) != _shapes(served):
            raise ModelMismatch(
                f"It takes {', '.join(_shapes(served))}, and version {before.version}, which is served, "
                f"{', '.join(_shapes(before))}. Start the service again to serve it."
            )
        kept = {"version": asdict(version), "files": manifest_bytes(files).decode(), "links": dict(served.links)}
        write_private(self._kept, json.dumps(kept))
        for other in self._models().iterdir():
            if other.name != version.run_id:
                shutil.rmtree(other, ignore_errors=True)
        return served

    def _serve_kept(self) -> None:
        """Serve what was served last, if it is whole; else say why not."""
        with suppress(OSError):
            try:
                kept: dict[str, Any] = json.loads(self._kept.read_text())
                version = Version(**kept["version"])
                folder = self._models() / version.run_id
                if not holds_exactly(folder, parse_manifest(kept["files"].encode())):
                    raise ModelMismatch(f"{folder} does not hold the files that it held.")
                check_kind(version, self._wanted.trust_code)
                self.standing.served = tried(version, folder, kept["links"])
                LOGGER.warning("Version %d, the last one that was served here, is served", version.version)
            except (PipelineError, ValueError, LookupError, TypeError) as error:
                LOGGER.error("What was served last cannot be served again: %s", error)

    def _models(self) -> Path:
        folder = self._wanted.folder / "models"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def bring(version: Version, models: Path, trust_code: bool, services: Services) -> tuple[Served, list[FileEntry]]:
    """The version and its files, fetched into `models` under the name of its run if they are not there, and tried.

    Raises `ModelMismatch` or `RunNotRegistrable` if it cannot be served.
    """
    check_kind(version, trust_code)
    tracker = services.tracker
    run = tracker.get_run(version.run_id)
    check_registrable(run)
    files = model_files(tracker, run, services.settings.scratch_folder)
    folder = models / run.run_id
    if not holds_exactly(folder, files):
        incoming = folder.with_name(f".{folder.name}.incoming")
        for leftover in (incoming, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            fetch_model(tracker, run, files, incoming)
            incoming.rename(folder)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    links = {"run": tracker.run_url(run) or "", "version": tracker.version_url(version) or ""}
    return tried(version, folder, links), files


def check_kind(version: Version, trust_code: bool) -> None:
    """Raise `ModelMismatch` for a version that is not of Keras, or of its program's own classes without trust."""
    kind = version.tags.get("model_kind", "keras")
    if kind == "needs_code" and not trust_code:
        raise ModelMismatch(f"{version.uri} needs its program's own code to be loaded, which --trust-code allows.")
    if kind not in ("keras", "needs_code"):
        raise ModelMismatch(f"{version.uri} is registered as files, which nothing here loads.")


def tried(version: Version, folder: Path, links: dict[str, str]) -> Served:
    """The version with the network in `folder`, which was seen to answer its example; else raises `ModelMismatch`."""
    scale = version.tags.get(SCORE_SCALE)
    code = folder / "code" if version.tags.get("model_kind") == "needs_code" else None
    network = Network(folder, float(scale) if scale else None, code)
    logged = version.tags.get("weights_sha256", "none")
    if logged not in ("none", network.weights_sha256):
        raise ModelMismatch(f"Its weights have the digest {network.weights_sha256}, and its run logged {logged}.")
    try:
        compared = network.check_example()
    except BadRequest as error:
        raise ModelMismatch(f"Its own input example is not what it takes: {error.sentence}") from error
    if not compared:
        LOGGER.warning("%s has no input example with its outputs, so its answers were compared with none", version.uri)
    network.seconds  # noqa: B018  Warms it up.
    return Served(version.name, version.version, version.run_id, network, version.tags, links)


def _shapes(served: Served) -> list[str]:
    inputs = served.network.contract.inputs
    return [f"{tensor.name}: {tensor}" if len(inputs) > 1 else str(tensor) for tensor in inputs]
