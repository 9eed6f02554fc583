"""The running service, asked for the whole test set: is it as accurate as its version was registered to be?"""

import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from infra.errors import ArgumentError, DatasetCorrupted, ModelMismatch, PipelineError
from infra.services import Services
from tasks.datasets.stored import FOLDER
from tasks.programs.mnist.digits.dataset_files import TEST_IMAGES, TEST_LABELS, read_idx
from tasks.programs.mnist.digits.errors import BadDataset

SHOWN = 30
ROWS_AT_ONCE = 500
_TILE, _ZOOM = 84, 2
_RED, _BLACK = (200, 0, 30), (0, 0, 0)


@dataclass(frozen=True)
class ServiceTest:
    """What the service made of the test set."""

    model: str
    model_version: int
    images: int
    accuracy: float
    """Share of images whose digit is right, from 0 to 1."""
    registered: float
    """The same, as the version's run logged it."""
    seconds: float
    samples: list[dict[str, int]]
    """Drawn ones: `item`, `label`, `predicted`."""
    picture: str
    """A file of them, the wrong ones in red."""

    @property
    def is_as_registered(self) -> bool:
        """True if as many images are right as were then."""
        return round(self.accuracy * self.images) == round(self.registered * self.images)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self, colours: bool) -> str:
        """The samples and the figures in lines; with `colours`, the wrong ones in red, in any case marked."""
        rows: dict[str, list[str]] = {"label": [], "predicted": [], "": []}
        for one in self.samples:
            wrong = one["label"] != one["predicted"]
            rows["label"].append(str(one["label"]))
            shown = str(one["predicted"])
            rows["predicted"].append(f"\033[31m{shown}\033[0m" if wrong and colours else shown)
            rows[""].append("^" if wrong else " ")
        lines = [f"{name:<10}" + " ".join(row).rstrip() for name, row in rows.items()]
        verdict = "as registered" if self.is_as_registered else f"and not the registered {self.registered:.4f}"
        lines.append(f"{self.model} version {self.model_version}: accuracy {self.accuracy:.4f}, {verdict}")
        lines.append(f"{self.images:,} images in {self.seconds:.1f} s; the samples are drawn in {self.picture}")
        return "\n".join(lines) + "\n"


def test_set(tags: Mapping[str, str], folder: Path | None, services: Services) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (n, height, width) and labels (n,), of `folder` or of the data set in the store that `tags` name.

    Raises `ArgumentError` if they are no gzipped IDX files, `DatasetCorrupted` if those are damaged.
    """
    found = []
    for name in (TEST_IMAGES, TEST_LABELS):
        place = f"{FOLDER}/{tags.get('dataset')}/{tags.get('dataset_sha256')}/{name}"
        try:
            data = (folder / name).read_bytes() if folder else services.store.get_bytes(place)
        except OSError:
            data = None
        if data is None:
            raise ArgumentError(
                f"There is no test set to score: {folder or services.store.uri} has no {name}.\n"
                f"Name a folder with {TEST_IMAGES} and {TEST_LABELS}: --data FOLDER"
            )
        try:
            found.append(read_idx(io.BytesIO(data), name))
        except BadDataset as error:
            raise DatasetCorrupted(f"The test set is damaged: {error}") from error
    return found[0], found[1]


def score_test_set(
    facts: Mapping[str, Any], key: str, folder: Path | None, picture: Path, services: Services
) -> ServiceTest:
    """Ask the service whose `facts` are address, model and version for each image; draw some of them into `picture`."""
    version = services.tracker.get_version(facts["model"], facts["model_version"])
    if version is None or "test_accuracy" not in version.tags:
        raise ArgumentError(
            f"Version {facts['model_version']} of {facts['model']} has no registered test accuracy to compare with."
        )
    images, labels = test_set(version.tags, folder, services)
    start = time.monotonic()
    predicted = _asked(facts, key, images)
    seconds = time.monotonic() - start
    drawn = np.sort(np.random.default_rng().choice(len(images), min(SHOWN, len(images)), replace=False))
    _draw(picture, images[drawn], labels[drawn], predicted[drawn])
    samples = [{"item": int(item), "label": int(labels[item]), "predicted": int(predicted[item])} for item in drawn]
    accuracy, registered = float(np.mean(predicted == labels)), float(version.tags["test_accuracy"])
    return ServiceTest(version.name, version.version, len(images), accuracy, registered, seconds, samples, str(picture))


def _asked(facts: Mapping[str, Any], key: str, images: np.ndarray) -> np.ndarray:
    found: list[Any] = []
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=facts["address"], headers=headers, timeout=60, trust_env=False) as client:
        for first in range(0, len(images), ROWS_AT_ONCE):
            part = images[first : first + ROWS_AT_ONCE]
            answer = client.post("/score", json={"data": (part.reshape(len(part), -1) / 255).tolist()})
            if answer.status_code != 200:
                raise PipelineError(f"The service does not score the test set: {answer.text[:300]}")
            if answer.headers["X-Model-Version"] != str(facts["model_version"]):
                raise ModelMismatch("The champion changed while the test set was scored. Run it again.")
            found += answer.json()
    return np.array(found)


def _draw(file: Path, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> None:
    from PIL import Image, ImageDraw

    columns = 10
    sheet = Image.new("RGB", (columns * _TILE, -(-len(images) // columns) * (_TILE + 20)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for place, (image, label, found) in enumerate(zip(images, labels, predicted, strict=True)):
        left, top = place % columns * _TILE + 8, place // columns * (_TILE + 20) + 20
        sheet.paste(Image.fromarray(255 - image).resize((_ZOOM * image.shape[1], _ZOOM * image.shape[0])), (left, top))
        colour = _BLACK if label == found else _RED
        pen.text((left, top - 16), str(found) if label == found else f"{found}, is {label}", fill=colour)
        pen.rectangle((left - 1, top - 1, left + _ZOOM * image.shape[1], top + _ZOOM * image.shape[0]), outline=colour)
    incoming = file.with_suffix(".incoming.png")
    sheet.save(incoming)
    incoming.replace(file)
