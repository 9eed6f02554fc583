"""How the runner opens a store: with an end to every call, should the store hang instead of refusing."""

from typing import Any

import fsspec

_S3: dict[str, Any] = {
    # 45 s, and the pauses between. By default a call to a server that never answers takes some 20 minutes.
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 15,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    }
}


def open_store(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an fsspec address, and the path in it. Connects to nothing."""
    # Listings are cached for good by default, and another process may write here.
    options = {"use_listings_cache": False, **(_S3 if uri.startswith(("s3://", "s3a://")) else {})}
    filesystem, path = fsspec.core.url_to_fs(uri, **options)
    if hasattr(filesystem, "call_s3"):
        filesystem.retries = 1  # botocore repeats, and both would multiply.
    return filesystem, path
