"""The outside services as a flow is given them: where they are, and what speaks to them."""

from dataclasses import dataclass
from functools import cached_property

from infra.experiment_tracker import ExperimentTracker
from infra.object_store import ObjectStore
from infra.settings import Settings


@dataclass(frozen=True)
class Services:
    """Made once per flow or command, and handed to whatever speaks to a service."""

    settings: Settings
    tracker: ExperimentTracker

    @cached_property
    def store(self) -> ObjectStore:
        """Made when it is first asked for: an S3 client is imported for it."""
        return ObjectStore(self.settings.object_store_uri)
