"""Imports without the packages that a library takes where it finds them, does without, and is slow to import with."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def packages_hidden(*packages: str) -> Iterator[None]:
    """Let these packages look as if they were not installed, while the block imports; those in use already stay."""
    hidden = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]
