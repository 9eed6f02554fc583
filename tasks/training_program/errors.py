"""The errors that the program ends with on purpose, and the exit status of each.

The text of an error is complete by itself: what was attempted, what was found, what to try.
"""

LAST_WORDS = "\x1e"
"""A line of its own, of this character alone (the record separator of ASCII), before the program's last words: its
answer, which is a line of JSON, or the reason for which it fails. No other line begins so by chance."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_GPU = 3
EXIT_BAD_DATASET = 4
EXIT_FOREIGN_CHECKPOINT = 5
EXIT_TAKEN_OVER = 6
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class ProgramError(Exception):
    """The program cannot do what it was asked for."""

    exit_status = EXIT_FAILED


class UsageError(ProgramError):
    """The arguments contradict each other or the data."""

    exit_status = EXIT_USAGE


class NoGpu(ProgramError):
    """A GPU was asked for, and TensorFlow sees none."""

    exit_status = EXIT_NO_GPU


class ForeignCheckpoint(ProgramError):
    """The checkpoints belong to another training."""

    exit_status = EXIT_FOREIGN_CHECKPOINT


class TakenOver(ProgramError):
    """Another process goes on with this training."""

    exit_status = EXIT_TAKEN_OVER
