"""Which failures of a task are worth trying again."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from prefect.client.schemas.objects import State

from infra.errors import (
    ComputeUnavailable,
    DatasetCorrupted,
    DatasetNotFound,
    ModelMismatch,
    ObjectStoreError,
    ObjectStoreUnreachable,
    RunNotRegistrable,
    TrackerError,
    TrackerUnreachable,
    TrainingFailed,
    UsageError,
)

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

FINAL = (
    UsageError,
    DatasetNotFound,
    DatasetCorrupted,
    ObjectStoreError,
    TrackerError,
    ComputeUnavailable,
    TrainingFailed,
    RunNotRegistrable,
    ModelMismatch,
)
"""Failures that the same attempt would meet again: a wrong key or a full disk stays what it is."""


# Prefect takes plain functions alone for a retry condition; anything else means "never", without a word.
def is_worth_a_retry(task: Any, run: Any, state: State[Any]) -> bool:
    """True unless the task failed in a way that repeating cannot mend."""
    try:
        state.result()
    except (ObjectStoreUnreachable, TrackerUnreachable):
        return True
    except FINAL:
        return False
    except Exception:
        return True
    return False


def once_repaired(step: Callable[[], T], repair: Callable[[], object]) -> T:
    """What `step` returns; should it refuse the data, done again after `repair`, with a line that says so."""
    try:
        return step()
    except DatasetCorrupted:
        LOGGER.warning("The stored data set is damaged: it is sent again from its source, and the step repeated")
        repair()
        return step()
