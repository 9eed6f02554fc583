"""What a person gives as `--data`, a folder, an address or the name of a data set: looked up, brought to the store.

Nothing is sent or read again that has not changed.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from fsspec import available_protocols

from infra.addresses import has_login, is_http, without_secrets
from infra.compute.runner.manifest import files_sha256
from infra.digest_cache import DigestCache
from infra.errors import ArgumentError
from infra.object_store import ObjectStore
from infra.services import Services
from tasks.dataset_catalog import DatasetDescription, read_catalog
from tasks.datasets.address import AddressFiles, describe_address, list_address
from tasks.datasets.folder import FolderFiles, describe_folder, list_folder
from tasks.datasets.names import check_dataset_name, is_left_out
from tasks.datasets.obtain import obtain_dataset
from tasks.datasets.stored import (
    SHORT,
    StoredDataset,
    list_datasets,
    matching_version,
    not_stored,
    store_dataset,
    stored_dataset,
    versions_table,
)
from tasks.handoffs import Dataset

LOGGER = logging.getLogger(__name__)

Kind = Literal["folder", "address", "catalog", "stored"]


@dataclass(frozen=True)
class DataSource:
    """Where the files of a data set are before it is in the store, or which of the store's it is."""

    kind: Kind
    place: str
    """The path of the folder, the address, or the name, with `@DIGEST` where the store has it."""
    description: DatasetDescription | None = None
    """Of a data set of the catalog."""
    stored: StoredDataset | None = None
    """The data set in the store, of the kind `stored`."""

    @property
    def own_name(self) -> str:
        """What the data set is called if nobody names it otherwise."""
        if self.description or self.stored:
            return (self.description or self.stored).name  # type: ignore[union-attr]
        return unquote(self.place).rstrip("/").rpartition("/")[2] if "://" in self.place else Path(self.place).name


def split_argument(given: str) -> tuple[str | None, str]:
    """The name and the data of `name=DATA`; None and all of it if no name stands before."""
    found = re.fullmatch(r"([A-Za-z_]\w*)=(.+)", given, re.ASCII | re.DOTALL)
    return (found[1], found[2]) if found else (None, given)


def form(given: str) -> tuple[Literal["folder", "address", "name"], str]:
    """What `given` is by its form alone, and the path of the folder, the address, or the name.

    A word without `/` is a name. Raises `ArgumentError` for what can be none of the three.
    """
    if not given.strip():
        raise ArgumentError("--data is empty.\nExpected a folder (./name), an address or the name of a data set.")
    if mistyped := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(?!//)", given):
        meant = f"{mistyped[1].lower()}://{given[mistyped.end() :].lstrip('/')}"
        raise ArgumentError(
            f"--data {given} is neither an address nor a folder.\nWrite {without_secrets(meant)}, or put ./ before it."
        )
    if "://" in given:
        return _address(given)
    if "/" in given or given in (".", "..", "~"):
        return "folder", given
    return "name", given


def _address(given: str) -> tuple[Literal["folder", "address"], str]:
    scheme, _, rest = given.partition("://")
    scheme = scheme.lower()
    if scheme in ("file", "local"):
        path = rest.removeprefix("localhost")
        if not path.startswith("/"):
            raise ArgumentError(f"--data {given} names no whole path.\nWrite file:///{rest}, or the folder as it is.")
        return "folder", unquote(path)
    address = f"{scheme}://{rest}".rstrip("/")
    shown = without_secrets(address)
    if "::" in given or scheme not in available_protocols():
        raise ArgumentError(
            f"--data {shown}: {scheme} is no protocol that fsspec knows.\nExpected s3://bucket/folder, or a folder."
        )
    if has_login(address):
        raise ArgumentError(
            f"--data {shown} has a login, which would be kept with every run.\nLeave it out of the address: S3's keys "
            "stand in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if not urlsplit(address).netloc or (is_http(address) and "?" in address):
        raise ArgumentError(f"--data {shown} is no folder's address.\nExpected s3://bucket/folder.")
    return "address", address


def resolve_all(given: Iterable[str], services: Services) -> dict[str, DataSource]:
    """Each data set that was given, by the name before its `=`, by default its own; in the order given.

    Raises `ArgumentError` for two of one name, and as `resolve` does.
    """
    sources: dict[str, DataSource] = {}
    for argument in given:
        name, data = split_argument(argument)
        source = resolve(data, services)
        name = name or source.own_name
        if name in sources:
            raise ArgumentError(f"--data names two data sets {name}.\nName them apart: --data one={data}")
        sources[name] = source
    return sources


def resolve(given: str, services: Services) -> DataSource:
    """What `--data` means here and now, looked up and checked as far as it can be without reading its files.

    Raises `ArgumentError` for what is not there or cannot be a data set, with what there is instead;
    `ObjectStoreError` and its family if the store, or the address, cannot be asked.
    """
    kind, place = form(given)
    if kind == "folder":
        return DataSource("folder", str(list_folder(Path(place)).folder))
    if kind == "address":
        list_address(place)
        return DataSource("address", place)
    name, at, prefix = place.rpartition("@")
    found = _version(name, prefix, services) if at and name else _named(place, services)
    if Path(place).is_dir():
        version = found.stored.sha256 if found.stored else found.description.sha256 if found.description else ""
        raise ArgumentError(
            f"--data {place} is a data set and a folder here.\n"
            f"Write ./{place} for the folder, or {found.own_name}@{version[:SHORT]} for the data set."
        )
    return found


def _named(name: str, services: Services) -> DataSource:
    catalog = read_catalog(services.settings.dataset_catalog)
    if name in catalog:
        return DataSource("catalog", name, description=catalog[name])
    versions = list_datasets(services.store, name)
    if not versions:
        raise _unknown(name, catalog, services)
    complete = [version for version in versions if version.complete]
    if not complete:
        raise ArgumentError(f"The upload of {name} broke off, so none of it can be used.\n{versions_table(versions)}")
    if len(complete) > 1 and not all(version.moment for version in complete):
        raise ArgumentError(
            f"There are {len(complete)} versions of {name}, and the store does not say which is newest.\n"
            f"{versions_table(complete)}\nName one as NAME@DIGEST."
        )
    return _stored(max(complete, key=lambda version: (version.moment is not None and version.moment.timestamp(), 0)))


def _version(name: str, prefix: str, services: Services) -> DataSource:
    """The data set NAME@PREFIX: one of the store's, or what the catalog says of the name."""
    catalog = read_catalog(services.settings.dataset_catalog)
    known = catalog.get(name)
    versions = list_datasets(services.store, name)
    if not versions and not known:
        raise _unknown(name, catalog, services)
    if known and known.sha256 not in {version.sha256 for version in versions}:
        # As one more version, that the store does not have yet.
        versions.append(not_stored(name, known.sha256, known.files))
    found = matching_version(name, prefix, versions)
    if known and known.sha256 == found.sha256:
        return DataSource("catalog", name, description=known)
    if not found.complete:
        raise ArgumentError(f"The upload of {found.short_name} broke off.\nBring its folder or address again.")
    return _stored(found)


def _stored(found: StoredDataset) -> DataSource:
    return DataSource("stored", found.short_name, stored=found)


def _unknown(name: str, catalog: Iterable[str], services: Services) -> ArgumentError:
    known = sorted({*catalog, *(dataset.name for dataset in list_datasets(services.store))})
    close = get_close_matches(name, known, 1)
    meant = f" Did you mean {close[0]}?" if close else ""
    here = f"\nThere is a folder of this name here: write ./{name} for it." if Path(name).is_dir() else ""
    return ArgumentError(
        f"There is no data set {name!r}, neither in the catalog nor in the store.{meant}\n"
        f"Known: {', '.join(known) or 'none'}. A word without / is a name; a folder is written ./folder.{here}"
    )


def dataset_name(source: DataSource, given: str | None) -> str:
    """The name of a source's data set in the store; `given` is what the person wants it to be.

    Raises `ArgumentError` if it cannot be one, or is given for a data set that has a name already.
    """
    if source.description or source.stored:
        if given and given != source.own_name:
            raise ArgumentError(
                f"--dataset-name {given}: the data set {source.place} has a name already.\nLeave it out."
            )
        return source.own_name
    return check_dataset_name(given or source.own_name)


def describe(source: DataSource, services: Services, in_place: bool) -> FolderFiles | AddressFiles:
    """The files of a folder or an address, read as far as they have changed; see `bring_to_store`."""
    files: FolderFiles | AddressFiles
    with DigestCache(services.settings.home / "digests.sqlite") as cache:
        if source.kind == "address":
            files = describe_address(source.place, cache)
        else:
            files = FolderFiles(Path(source.place), tuple(describe_folder(Path(source.place), cache)))
    return files.in_place() if in_place else files


def digest(source: DataSource, services: Services, in_place: bool) -> str:
    """The SHA-256 that the data set of `source` has, or will have, in the store; nothing is sent."""
    known = source.stored or source.description
    return known.sha256 if known else files_sha256(describe(source, services, in_place).entries)


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
    if source.kind == "folder":
        _refuse_around_the_store(Path(source.place), services.store)
    return store_dataset(name, describe(source, services, in_place), services.store, overwrite)


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
    return store_dataset(description.name, FolderFiles(files.folder, description.files), services.store, overwrite)


def _refuse_around_the_store(folder: Path, store: ObjectStore) -> None:
    """Raise if the store lies among the files: each upload would make the next one larger."""
    root = Path(store.uri.removeprefix("file://")) if store.uri.startswith("file://") else None
    if root and root.is_relative_to(folder) and not any(map(is_left_out, root.relative_to(folder).parts)):
        raise ArgumentError(
            f"The folder {folder} holds the object store, {root}, and so every copy of itself.\n"
            "Name a folder with the data alone, or set OBJECT_STORE_URI to another place."
        )
