"""All faults by name: those of signals, services and machines, and the rest, which are here."""

import random
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.torture import machines, services, signals
from tests.torture.attempts import (
    SECONDS_TO_END,
    Attempt,
    Point,
    cell,
    ends_of_tracebacks,
    epoch_line,
    living,
    wait_until_all_ended,
)
from tests.torture.bench import Bench
from tests.torture.facts import store_folder
from tests.torture.kills import Case, compared, ended_well, expect


def memory_limit(bench: Bench, seconds: float) -> Case:
    """The program may not have more memory than it has, which is too little for the compilation that comes next."""
    pipeline = bench.fresh()
    attempt = Attempt(pipeline)
    attempt.wait_for(r"- data set ")
    (runner,) = (one for one in living(pipeline, "runner") if one.cmdline()[-1] == "train")
    (program,) = (one for one in living(pipeline, "program") if one.ppid() == runner.pid)
    limit = program.memory_info().vms
    resource.prlimit(program.pid, resource.RLIMIT_AS, (limit, limit))
    status, _ = attempt.wait()
    case = Case("memory limit on the program", "before epoch 1", attempt.said())
    expect(case, status == 1, f"exit status {status}, expected 1")
    # Which of its allocations fails decides how the program ends: at once, or with a traceback, which is its own output
    # and comes as its other lines do.
    ours = "\n".join(line for line in attempt.written.splitlines() if "| INFO " not in line)
    case.differences += [cell(f"the user saw a traceback: {end}") for end in ends_of_tracebacks(ours)]
    return compared(bench, pipeline, case)


def bit_flips(bench: Bench, seconds: float) -> Case:
    """A bit of the stored data set turns over while the run is interrupted; then one of the downloaded file as well."""
    rng = bench.rng("bits")
    pipeline = bench.fresh()
    first, second = sorted(rng.sample(range(1, 26), 2))
    flipped: list[str] = []
    case = Case("a bit of the data set turns over", "", times=3)
    for epoch in (first, second):
        attempt = Attempt(pipeline)
        reached = attempt.reach(Point("epoch", epoch=epoch))
        expect(case, reached is not None, f"it ended before epoch {epoch}: {attempt.said()}")
        attempt.process.kill()
        attempt.wait()
        case.differences += wait_until_all_ended(pipeline, SECONDS_TO_END * bench.load)
        flipped.append(f"stored {_flip(bench, rng, store_folder(pipeline) / 'datasets')}")
        if epoch == second:
            flipped.append(f"downloaded {_flip(bench, rng, pipeline.folder / 'home' / 'datasets')}")
    attempt = Attempt(pipeline)
    ended_well(bench, attempt, case)
    case.saw = attempt.said_of(r"is sent again", "")
    expect(case, bool(case.saw), "no word of what was mended")
    case.when = f"epoch {first}, {second}: {', '.join(flipped)}"
    return case


def _flip(bench: Bench, rng: random.Random, folder: Path) -> str:
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.name in bench.files))
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"{file.name} at {at}"


def two_at_once(bench: Bench, seconds: float) -> Case:
    """The same command twice at the same time, into the same folder."""
    pipeline = bench.fresh()
    (pipeline.folder / "second").mkdir()
    second = replace(pipeline, folder=pipeline.folder / "second")
    attempts = [Attempt(pipeline), Attempt(second, f"--output-dir={pipeline.output_dir}")]
    ended = [attempt.wait() for attempt in attempts]
    case = Case("the same command twice at once", "from the start")
    case.saw = next(filter(None, (attempt.said_of("aiting", "") for attempt in attempts)), "no word of it")
    for attempt, (status, _) in zip(attempts, ended, strict=True):
        expect(case, status == 0, f"exit status {status}, expected 0: {attempt.said()}")
    trained = sum(bool(re.search(epoch_line(1), attempt.written)) for attempt in attempts)
    expect(case, trained == 1, f"{trained} of them trained, expected 1")
    outcomes = [outcome for status, outcome in ended if status == 0]
    expect(case, len({outcome["run_id"] for outcome in outcomes}) == 1, "they used two runs")
    return compared(bench, pipeline, case, outcomes[0] if len(outcomes) == 2 else None)


FAULTS: dict[str, Callable[[Bench, float], Case]] = {
    function.__name__: function
    for function in (
        signals.sigterm,
        signals.stopped,
        signals.mlflow_process_killed,
        signals.orphan_stopped,
        memory_limit,
        services.disk_full_at_upload,
        services.disk_full_in_training,
        services.mlflow_server_down,
        services.s3_down_in_training,
        services.s3_down_in_upload,
        two_at_once,
        signals.group_signals,
        services.mlflow_hangs,
        services.s3_hangs,
        bit_flips,
        machines.two_machines,
        machines.machine_dies,
    )
}
"""By name; the second argument is how long, in seconds, something is away."""

MOSTLY_WAITING = (
    *("stopped", "mlflow_server_down", "s3_down_in_training", "s3_down_in_upload"),
    *("mlflow_hangs", "s3_hangs", "machine_dies"),
)
"""They leave the machine to others most of the time."""

KERAS_ALONE = ("memory_limit",)
"""They strike what a program without Keras does not do."""

ALSO_ON_KERAS = ("stopped", "group_signals", "mlflow_server_down")
"""They strike MNIST too: its own threads, its end, and its own patience with MLflow."""
