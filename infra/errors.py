"""The errors that the pipeline raises on purpose.

    PipelineError
    ├── SettingsError         a setting or an argument is wrong; nothing was started
    ├── DatasetUnavailable    no mirror could be reached, or none delivered to the end
    ├── DatasetCorrupted      a mirror or the store was reached and holds something else
    ├── ObjectStoreError      the store refused
    │   └── ObjectStoreUnreachable    it did not answer, broke off, or is in trouble
    ├── TrackerError          MLflow refused or broke off
    ├── ComputeUnavailable    the compute cannot run the job
    ├── TrainingFailed        the training program ended without a result
    ├── RunNotRegistrable     the run lacks what a model version must have
    └── ModelMismatch         what was downloaded is not what the run logged

A message says what was attempted, on what, what was expected, what was found and what to try,
in a few lines: it is all that a person at a terminal sees.
"""


class PipelineError(Exception):
    """Base of all; its text is complete by itself."""


class SettingsError(PipelineError):
    """A setting or an argument is wrong; found before anything was started."""


class DatasetUnavailable(PipelineError):
    """No mirror delivered: none could be reached, or those that could broke off."""


class DatasetCorrupted(PipelineError):
    """A source was reached, and what it holds is not the data set."""


class ObjectStoreError(PipelineError):
    """The object store refused a request."""


class ObjectStoreUnreachable(ObjectStoreError):
    """No answer, a broken connection, or a server in trouble (5xx): the same request may succeed later."""


class TrackerError(PipelineError):
    """MLflow refused a request or broke off."""


class ComputeUnavailable(PipelineError):
    """The compute that was asked for cannot run the job."""


class TrainingFailed(PipelineError):
    """The training program ended without a result."""


class RunNotRegistrable(PipelineError):
    """A run lacks what every model version must have."""


class ModelMismatch(PipelineError):
    """A downloaded model differs from what its run logged."""
