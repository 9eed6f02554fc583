"""How the runner ends: an exit status for each kind of end, and its last words.

The text of an error is complete by itself: what was attempted, what was found, what to try.
"""

LAST_WORDS = "\x1e"
"""A line of its own, of this character alone (the record separator of ASCII), before the last words: an answer, which
is a line of JSON, or the reason of a failure. No other line has it: see `output.say`."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_GPU = 3
EXIT_BAD_DATASET = 4
EXIT_TAKEN_OVER = 6
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class RunnerError(Exception):
    """The runner cannot do what it was asked for, or the program did not do what it must."""

    exit_status = EXIT_FAILED


class UsageError(RunnerError):
    """What was asked for contradicts itself or what is there."""

    exit_status = EXIT_USAGE


class NoGpu(RunnerError):
    """A GPU was asked for, and there is none."""

    exit_status = EXIT_NO_GPU


class BadDataset(RunnerError):
    """The files that were read are not those of the data set."""

    exit_status = EXIT_BAD_DATASET


class TakenOver(RunnerError):
    """Another process goes on with this training."""

    exit_status = EXIT_TAKEN_OVER
