"""The errors that the program ends with on purpose; each text is complete: what was found, what to try."""


class ProgramError(Exception):
    """The program cannot do what it was asked for."""

    exit_status = 1


class UsageError(ProgramError):
    """The arguments contradict each other or the data."""

    exit_status = 2


class NoGpu(ProgramError):
    """A GPU was asked for, and TensorFlow sees none."""

    exit_status = 3


class BadDataset(ProgramError):
    """A file is not what its name says; the text names the file and the reason."""

    exit_status = 4
