"""The errors that the pipeline raises on purpose.

    PipelineError
    ├── UsageError            what was asked for cannot be done; nothing was started
    │   ├── SettingsError         a setting of this machine is wrong
    │   └── ArgumentError         an argument of the command is wrong
    ├── ProgramInvalid        the program cannot run, as its files show
    ├── DatasetUnavailable    no mirror could be reached, or none delivered to the end
    ├── DatasetNotFound       those that were reached do not have it, or do not give it
    ├── DatasetCorrupted      a mirror or the store was reached and holds something else
    ├── ObjectStoreError      the store refused
    │   └── ObjectStoreUnreachable    it did not answer, broke off, or is in trouble
    ├── LeaseLost             another process took over what this one had the lease for
    ├── TrackerError          MLflow refused
    │   └── TrackerUnreachable        it did not answer, broke off, or is in trouble
    ├── PrefectUnreachable    Prefect's server does not answer, or will not do
    ├── ComputeUnavailable    the compute cannot run the job
    ├── TrainingFailed        the training program ended without a result
    ├── BadScores             what a program's score wrote cannot be compared
    ├── RunNotRegistrable     the run lacks what a model version must have
    ├── PromotionRefused      the version must not become champion
    └── ModelMismatch         what was downloaded is not what the run logged

A message says what was attempted, on what, what was expected, what was found and what to try,
in a few lines: it is all that a person at a terminal sees.
"""

from infra.addresses import without_secrets


class PipelineError(Exception):
    """Base of all; its text is complete by itself, and shows no secret of an address that it quotes."""

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


class UsageError(PipelineError):
    """What was asked for cannot be done, which was found before anything was started."""


class SettingsError(UsageError):
    """A setting of this machine is wrong: a variable, a file that it names, the disk."""


class ArgumentError(UsageError):
    """An argument of the command, or a parameter of the flow, is wrong."""


class ProgramInvalid(PipelineError):
    """A person's program cannot run, as its files show without running it."""


class DatasetUnavailable(PipelineError):
    """No mirror delivered: none could be reached, or those that could broke off."""


class DatasetNotFound(PipelineError):
    """The mirrors that answered do not have the data set, or do not give it."""


class DatasetCorrupted(PipelineError):
    """A source was reached, and what it holds is not the data set."""


class ObjectStoreError(PipelineError):
    """The object store refused a request."""


class ObjectStoreUnreachable(ObjectStoreError):
    """No answer, a broken connection, or a server in trouble (5xx): the same request may succeed later."""


class LeaseLost(PipelineError):
    """Another process has taken over what this one had the lease for."""


class TrackerError(PipelineError):
    """MLflow refused a request."""


class TrackerUnreachable(TrackerError):
    """No answer, a broken connection, or a server in trouble (5xx): the same request may succeed later."""


class PrefectUnreachable(PipelineError):
    """Prefect's server does not answer, refuses us, or is another version's."""


class ComputeUnavailable(PipelineError):
    """The compute that was asked for cannot run the job."""


class TrainingFailed(PipelineError):
    """The training program ended without a result."""

    def __init__(self, text: str, exit_status: int | None = None) -> None:
        """`exit_status` is the program's, where it ended by itself."""
        super().__init__(text)
        self.exit_status = exit_status


class BadScores(PipelineError):
    """What a program's entry point `score` wrote is not the scores of the models on the same items."""


class RunNotRegistrable(PipelineError):
    """A run lacks what every model version must have."""


class PromotionRefused(PipelineError):
    """A version must not become champion: it was made from a sample, or the gate decided against it."""


class ModelMismatch(PipelineError):
    """A downloaded model differs from what its run logged."""
