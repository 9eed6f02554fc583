"""Bringing a data set to the store, wherever its files are: nothing is sent or read again that has not changed."""

import logging
from dataclasses import replace
from pathlib import Path

from infra.digest_cache import DigestCache
from infra.errors import ArgumentError
from infra.object_store import ObjectStore
from infra.services import Services
from tasks.datasets.address import describe_address
from tasks.datasets.folder import describe_folder
from tasks.datasets.names import is_left_out
from tasks.datasets.obtain import obtain_dataset
from tasks.datasets.sources import DataSource, dataset_name
from tasks.datasets.stored import Files, Keyed, folder_files, store_dataset, stored_dataset
from tasks.handoffs import Dataset

LOGGER = logging.getLogger(__name__)

DIGESTS = "digests.sqlite"
"""The file under PIPELINE_HOME that remembers digests."""


def bring_to_store(
    source: DataSource, services: Services, name: str | None = None, in_place: bool = False, overwrite: bool = False
) -> Dataset:
    """The data set of `source` in the store, called `name` or as its folder, address or catalog has it.

    With `in_place` its files stay where they are: the manifest names their addresses, whoever reads one compares size
    and digest, and the data set's digest is another than that of a copy. With `overwrite` everything is sent again.

    Raises `ArgumentError` if the files cannot be a data set or the name cannot be one, `DatasetUnavailable` if a file
    changes meanwhile, `ObjectStoreError` and its family if the store or the address refuses; for a data set of the
    catalog as `obtain_dataset` does. Nothing is in the store then, or a data set without a manifest, which the next
    call completes.
    """
    name = dataset_name(source, name)
    if source.stored or source.description:
        if in_place:
            raise ArgumentError(
                f"--in-place is for a folder or an address, and {source.place} is a name.\nLeave it out."
            )
        return _brought_by_name(source, services, overwrite)
    with DigestCache(services.settings.home / DIGESTS) as cache:
        files = (
            _address_files(source, cache, in_place)
            if source.kind == "address"
            else _folder_files(Path(source.place), services.store, cache, in_place)
        )
    return store_dataset(name, files, services.store, overwrite)


def _brought_by_name(source: DataSource, services: Services, overwrite: bool) -> Dataset:
    description = source.description
    if description is None:
        assert source.stored is not None
        LOGGER.info("Using %s of the store", source.stored.short_name)
        return Dataset(source.stored.name, source.stored.sha256, source.stored.uri)
    stored = stored_dataset(services.store, description.name, description.sha256)
    if stored and stored.complete and not overwrite:
        LOGGER.info("%s is in the store and whole, nothing was downloaded", stored.short_name)
        return Dataset(stored.name, stored.sha256, stored.uri)
    files = obtain_dataset(description, services.settings)
    return store_dataset(description.name, folder_files(files.folder, description.files), services.store, overwrite)


def _folder_files(folder: Path, store: ObjectStore, cache: DigestCache, in_place: bool) -> Files:
    _refuse_around_the_store(folder, store)
    entries = describe_folder(folder, cache)
    if in_place:
        return Files(tuple(replace(entry, uri=f"file://{folder / entry.name}") for entry in entries), _send_nothing)
    return folder_files(folder, entries)


def _address_files(source: DataSource, cache: DigestCache, in_place: bool) -> Files:
    described = describe_address(source.place, cache)
    if in_place:
        return Files(tuple(described.in_place()), _send_nothing)
    return Files(described.entries, described.send)


def _send_nothing(store: ObjectStore, keyed: Keyed, on_bytes: object) -> None:
    assert not keyed, "files that stay where they are"


def _refuse_around_the_store(folder: Path, store: ObjectStore) -> None:
    """Raise if the store lies among the files: each upload would make the next one larger."""
    root = Path(store.uri.removeprefix("file://")) if store.uri.startswith("file://") else None
    if root and root.is_relative_to(folder) and not any(map(is_left_out, root.relative_to(folder).parts)):
        raise ArgumentError(
            f"The folder {folder} holds the object store, {root}, and so every copy of itself.\n"
            "Name a folder with the data alone, or set OBJECT_STORE_URI to another place."
        )
