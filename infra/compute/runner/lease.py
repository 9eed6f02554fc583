"""The right to write: an object that the caller keeps, and that who takes the training over removes."""

from .exits import TakenOver
from .patience import with_patience
from .storage import open_store


class Lease:
    """The object at an fsspec address, which somebody else renews and removes."""

    def __init__(self, uri: str) -> None:
        self._filesystem, self._path = open_store(uri)
        self._uri = uri

    def check(self) -> None:
        """Raise `TakenOver` if the object is gone, `RunnerError` if the store stays away for two minutes."""
        if not with_patience(lambda: self._filesystem.exists(self._path), "look after the lease"):
            raise TakenOver(
                f"The lease {self._uri} is gone: another process has taken this training over, or it was removed by\n"
                "hand. Nothing more is written. Run the same command again: it waits for the other one, or goes on."
            )
