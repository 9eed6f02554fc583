"""The step "upload": a data set in the object store, under the digest of its manifest; and which ones are there."""

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.addresses import without_secrets
from infra.errors import ObjectStoreError
from infra.object_store import ObjectStore, SourceFile
from infra.services import Services
from tasks.handoffs import Dataset, DatasetFiles
from tasks.progress import byte_progress
from tasks.retrying import is_worth_a_retry
from tasks.training_program.dataset_files import MANIFEST, BadDataset, FileEntry, manifest_bytes, parse_manifest

LOGGER = logging.getLogger(__name__)

FOLDER = "datasets"


@dataclass(frozen=True)
class StoredDataset:
    """A data set that the store holds; `size` in bytes, of what is there."""

    name: str
    sha256: str
    uri: str
    size: int
    complete: bool
    """False if its upload broke off or an object was changed since; the next upload completes it."""


@task(
    name="upload dataset",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_a_retry,
)
def upload_dataset(
    files: DatasetFiles, services: Services, overwrite: bool = False, read_back: bool = False
) -> Dataset:
    """The data set in the object store of this machine's settings; see `store_dataset`."""
    dataset = files.description
    return store_dataset(dataset.name, files.folder, dataset.files, services.store, overwrite, read_back)


def store_dataset(
    name: str,
    folder: Path,
    entries: Iterable[FileEntry],
    store: ObjectStore,
    overwrite: bool = False,
    read_back: bool = False,
) -> Dataset:
    """Bring the files `entries` of `folder` to `<store>/datasets/<name>/<sha256>/`, the manifest last.

    Nothing is sent if the store has the manifest and every object in its size; with `overwrite`, all of it. With
    `read_back` an object's bytes are compared instead of its size: for one that was found damaged.
    Raises `ObjectStoreError`, and of it `ObjectStoreUnreachable` where another attempt may succeed.
    """
    entries = sorted(entries)
    manifest = manifest_bytes(entries)
    dataset_sha256 = hashlib.sha256(manifest).hexdigest()
    prefix = f"{FOLDER}/{name}/{dataset_sha256}"
    dataset = Dataset(name, dataset_sha256, f"{store.uri}/{prefix}")
    shown = without_secrets(dataset.uri)

    stored_manifest = store.get_bytes(f"{prefix}/{MANIFEST}")
    sizes = store.sizes(prefix)
    # Without a manifest a file of the right size is one that an earlier upload sent: an object bears its name
    # only when it is whole and its bytes had their digest, and the folder's name pins that digest. Under a
    # manifest that is not ours somebody else wrote: nothing there is trusted.
    distrusted = overwrite or stored_manifest not in (None, manifest)
    missing = [entry for entry in entries if distrusted or sizes.get(entry.name) != entry.size]
    if read_back:
        # One whole file in memory at a time; the program holds them all.
        found_sha256 = {
            entry: _sha256(store.get_bytes(f"{prefix}/{entry.name}") or b"") for entry in set(entries) - set(missing)
        }
        damaged = {entry: found for entry, found in found_sha256.items() if found != entry.sha256}
        for entry, found in damaged.items():
            LOGGER.warning(
                "%s in the store is damaged: expected SHA-256 %s, found %s. It is sent again from the checked download",
                f"{shown}/{entry.name}",
                entry.sha256,
                found,
            )
        missing += damaged
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
        sources = [(entry.name, SourceFile(folder / entry.name, entry.size, entry.sha256)) for entry in missing]
        store.put_files(((f"{prefix}/{file_name}", source) for file_name, source in sources), advance)
    if len(missing) < len(entries):
        # What was there before may have gone meanwhile. What was sent just now the store has confirmed already, with
        # its answer: to list a whole upload again took a quarter of its time on a server that hashes what it lists.
        _confirm(store.sizes(prefix), entries, shown)
    store.put_bytes(f"{prefix}/{MANIFEST}", manifest)
    LOGGER.info("Uploaded %s in %.1f s: %s", name, time.monotonic() - started, shown)
    return dataset


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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


def list_datasets(store: ObjectStore) -> list[StoredDataset]:
    """The data sets in the store, complete or not, by name and digest."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for key, size in store.sizes(FOLDER).items():
        name, _, rest = key.partition("/")
        dataset_sha256, _, file_name = rest.partition("/")
        if file_name:
            found.setdefault((name, dataset_sha256), {})[file_name] = size
    return [
        StoredDataset(
            name,
            dataset_sha256,
            f"{store.uri}/{FOLDER}/{name}/{dataset_sha256}",
            sum(sizes.values()) - sizes.get(MANIFEST, 0),
            _is_complete(store, f"{FOLDER}/{name}/{dataset_sha256}", dataset_sha256, sizes),
        )
        for (name, dataset_sha256), sizes in sorted(found.items())
    ]


def delete_dataset(store: ObjectStore, dataset: StoredDataset) -> None:
    """Remove a data set from the store, its manifest first: it is incomplete from then on, never wrong."""
    prefix = f"{FOLDER}/{dataset.name}/{dataset.sha256}"
    for name in sorted(store.sizes(prefix), key=lambda name: name != MANIFEST):
        store.delete(f"{prefix}/{name}")


def _is_complete(store: ObjectStore, prefix: str, dataset_sha256: str, sizes: dict[str, int]) -> bool:
    manifest = store.get_bytes(f"{prefix}/{MANIFEST}") if MANIFEST in sizes else None
    if manifest is None or hashlib.sha256(manifest).hexdigest() != dataset_sha256:
        return False
    try:
        return all(sizes.get(entry.name) == entry.size for entry in parse_manifest(manifest))
    except BadDataset:
        return False
