"""The data sets in the object store: each under its name and the digest of its manifest, which is written last."""

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol

from infra.addresses import without_secrets
from infra.background import OnBytes
from infra.compute.runner.manifest import MANIFEST, BadManifest, FileEntry, manifest_bytes, parse_manifest
from infra.errors import ArgumentError, ObjectStoreError
from infra.object_store import ObjectStore
from tasks.handoffs import Dataset
from tasks.progress import byte_progress

LOGGER = logging.getLogger(__name__)

FOLDER = "datasets"
SHORT = 12
"""Digits of a digest that are shown; as many as tell any two data sets of a name apart are enough to name one."""

Keyed = list[tuple[str, FileEntry]]
"""Files of a data set and the keys that they get in the store."""


@dataclass(frozen=True)
class StoredDataset:
    """A data set that the store holds; `size` in bytes."""

    name: str
    sha256: str
    uri: str
    files: int
    size: int
    """Of all files that its manifest names, or, without one, of those that are there."""
    complete: bool
    """False if its upload broke off or an object was changed since; the next upload completes it."""
    in_place: bool
    """True if its files are where they were, and only their list is in the store."""
    moment: datetime | None
    """When its manifest was written, where the store says so."""
    in_folder: bool = False
    """True if some of its files are in a folder of a machine's, in place."""

    @property
    def short_name(self) -> str:
        """What it can be asked for by."""
        return f"{self.name}@{self.sha256[:SHORT]}"


class Files(Protocol):
    """The files of a data set to be, and the way by which those that are missing in the store get there."""

    @property
    def entries(self) -> tuple[FileEntry, ...]: ...

    def send(self, store: ObjectStore, keyed: Keyed, on_bytes: OnBytes) -> None: ...


def store_dataset(
    name: str, files: Files, store: ObjectStore, overwrite: bool = False, read_back: bool = False
) -> Dataset:
    """Bring files to `<store>/datasets/<name>/<sha256>/`, the manifest last; of those with an address the entry only.

    Nothing is sent if the store has the manifest and every object in its size; with `overwrite`, all of it. With
    `read_back` an object's bytes are compared instead of its size: for one that was found damaged.
    Raises `ObjectStoreError`, and of it `ObjectStoreUnreachable` where another attempt may succeed.
    """
    manifest = manifest_bytes(files.entries)
    dataset_sha256 = hashlib.sha256(manifest).hexdigest()
    prefix = f"{FOLDER}/{name}/{dataset_sha256}"
    dataset = Dataset(name, dataset_sha256, f"{store.uri}/{prefix}")
    shown = without_secrets(dataset.uri)

    entries = [entry for entry in sorted(files.entries) if not entry.uri]
    stored_manifest = store.get_bytes(f"{prefix}/{MANIFEST}")
    sizes = store.sizes(prefix)
    # Without a manifest a file of the right size is one that an earlier upload sent: an object bears its name
    # only when it is whole and its bytes had their digest, and the folder's name pins that digest. Under a
    # manifest that is not ours somebody else wrote: nothing there is trusted.
    distrusted = overwrite or stored_manifest not in (None, manifest)
    missing = [entry for entry in entries if distrusted or sizes.get(entry.name) != entry.size]
    if read_back:
        missing += _damaged(store, prefix, set(entries) - set(missing))
    if stored_manifest == manifest and not missing:
        LOGGER.info("%s is in the store and whole, nothing was sent: %s", name, shown)
        return dataset

    started = time.monotonic()
    total = sum(entry.size for entry in missing)
    LOGGER.info("Uploading %s: %d of %d files, %.1f MB, to %s", name, len(missing), len(entries), total / 1e6, shown)
    store.discard_unfinished(prefix)
    if stored_manifest is not None:
        # First of all: should this break off, the data set is incomplete, and never a mixture that claims to be whole.
        store.delete(f"{prefix}/{MANIFEST}")
    with byte_progress(f"Uploading {name}", total) as advance:
        files.send(store, [(f"{prefix}/{entry.name}", entry) for entry in missing], advance)
    if len(missing) < len(entries):
        # What was there before may have gone meanwhile. What was sent just now the store has confirmed already, with
        # its answer: to list a whole upload again took a quarter of its time on a server that hashes what it lists.
        _confirm(store.sizes(prefix), entries, shown)
    store.put_bytes(f"{prefix}/{MANIFEST}", manifest)
    LOGGER.info("Uploaded %s in %.1f s: %s", name, time.monotonic() - started, shown)
    return dataset


def _damaged(store: ObjectStore, prefix: str, entries: Iterable[FileEntry]) -> list[FileEntry]:
    """Those of `entries` whose objects hold other bytes."""
    damaged = []
    for entry in sorted(entries):
        # One whole file in memory at a time; the program holds them all.
        found = hashlib.sha256(store.get_bytes(f"{prefix}/{entry.name}") or b"").hexdigest()
        if found != entry.sha256:
            damaged.append(entry)
            LOGGER.warning(
                "%s in the store is damaged: expected SHA-256 %s, found %s. It is sent again from the checked download",
                f"{without_secrets(store.uri)}/{prefix}/{entry.name}",
                entry.sha256,
                found,
            )
    return damaged


def _confirm(sizes: dict[str, int], entries: Iterable[FileEntry], shown: str) -> None:
    wrong = [
        f"  {entry.name}: expected {entry.size:,} bytes, found {sizes.get(entry.name, 'nothing')}"
        for entry in entries
        if sizes.get(entry.name) != entry.size
    ]
    if wrong:
        raise ObjectStoreError(
            f"{shown}: files that were there when the upload began are no longer:\n" + "\n".join(wrong) + "\n"
            "Does something else write or delete there? Run again to send what is missing."
        )


def list_datasets(store: ObjectStore, name: str | None = None) -> list[StoredDataset]:
    """The data sets in the store, or those called `name`, complete or not, by name and digest."""
    if name is not None and name.startswith("."):
        return []  # No data set has such a name, and a folder above may.
    found: dict[tuple[str, str], dict[str, int]] = {}
    prefix = f"{FOLDER}/{name}" if name else FOLDER
    for key, size in store.sizes(prefix).items():
        parts = (f"{name}/{key}" if name else key).split("/", 2)
        if len(parts) == 3:
            found.setdefault((parts[0], parts[1]), {})[parts[2]] = size
    return [_examined(store, *place, sizes) for place, sizes in sorted(found.items())]


def stored_dataset(store: ObjectStore, name: str, sha256: str) -> StoredDataset | None:
    """One data set of the store; None if nothing of it is there."""
    sizes = store.sizes(f"{FOLDER}/{name}/{sha256}")
    return _examined(store, name, sha256, sizes) if sizes else None


def not_stored(name: str, sha256: str, entries: Sequence[FileEntry]) -> StoredDataset:
    """A data set that is known and of which the store has nothing."""
    size = sum(entry.size for entry in entries)
    return StoredDataset(name, sha256, "", len(entries), size, complete=False, in_place=False, moment=None)


def find_version(store: ObjectStore, name: str, prefix: str) -> StoredDataset:
    """The data set of the store that NAME@PREFIX names, complete or not.

    Raises `ArgumentError` if there is none or more than one, with those that there are.
    """
    versions = list_datasets(store, name)
    if not versions:
        names = sorted({dataset.name for dataset in list_datasets(store)})
        raise ArgumentError(f"There is no data set {name} in the store.\nThere is: {', '.join(names) or 'none'}.")
    return matching_version(name, prefix, versions)


def matching_version(name: str, prefix: str, versions: Sequence[StoredDataset]) -> StoredDataset:
    """The one of `versions` whose digest begins with `prefix`; raises `ArgumentError` if that is not one."""
    prefix = prefix.lower()
    if not re.fullmatch("[0-9a-f]{1,64}", prefix):
        raise ArgumentError(
            f"{name}@{prefix}: {prefix!r} is no beginning of a digest. Expected digits of 0-9a-f:\n"
            f"{versions_table(versions)}"
        )
    matching = [version for version in versions if version.sha256.startswith(prefix)]
    if not matching:
        raise ArgumentError(f"There is no data set {name}@{prefix}. There is:\n{versions_table(versions)}")
    if len(matching) > 1:
        raise ArgumentError(
            f"{name}@{prefix} is the beginning of {len(matching)} digests:\n{versions_table(matching)}\n"
            "Name one by more of its digits."
        )
    return matching[0]


def versions_table(versions: Iterable[StoredDataset]) -> str:
    """A line for each version, by which a person can tell them apart."""
    return "\n".join(
        f"  {one.short_name}  {one.files:,} files, {one.size / 1e6:,.1f} MB"
        + (f", {one.moment:%Y-%m-%d %H:%M} UTC" if one.moment else "")
        + ("" if one.complete else ", incomplete" if one.uri else ", in the catalog")
        for one in versions
    )


def _examined(store: ObjectStore, name: str, sha256: str, sizes: dict[str, int]) -> StoredDataset:
    prefix = f"{FOLDER}/{name}/{sha256}"
    there = {file: size for file, size in sizes.items() if file != MANIFEST}
    known = partial(StoredDataset, name, sha256, f"{store.uri}/{prefix}")
    manifest = store.get_bytes(f"{prefix}/{MANIFEST}") if MANIFEST in sizes else None
    entries: Sequence[FileEntry] = ()
    if manifest is not None and hashlib.sha256(manifest).hexdigest() == sha256:
        try:
            entries = parse_manifest(manifest)
        except BadManifest:
            entries = ()
    if not entries:
        return known(len(there), sum(there.values()), complete=False, in_place=False, moment=None)
    return known(
        len(entries),
        sum(entry.size for entry in entries),
        complete=all(entry.uri or sizes.get(entry.name) == entry.size for entry in entries),
        in_place=any(entry.uri for entry in entries),
        moment=store.changed_at(f"{prefix}/{MANIFEST}"),
        in_folder=any((entry.uri or "").startswith("file:") for entry in entries),
    )


def delete_dataset(store: ObjectStore, dataset: StoredDataset) -> None:
    """Remove a data set from the store, its manifest first: it is incomplete from then on, never wrong."""
    prefix = f"{FOLDER}/{dataset.name}/{dataset.sha256}"
    for name in sorted(store.sizes(prefix), key=lambda name: name != MANIFEST):
        store.delete(f"{prefix}/{name}")
