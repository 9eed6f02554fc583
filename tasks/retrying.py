"""Which failures of a task are worth trying again."""

from typing import Any

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
