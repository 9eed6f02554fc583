"""Our training against the tutorial's plain script, in turn on this machine.

    python -m tests.benchmarks.training --data-folder FOLDER [--rounds 3] [--epochs 5] [--seeds 5]

With `--seeds` it also compares the test accuracy after 20 epochs, which takes minutes.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.compute.local_process import usable_cores
from tasks.mnist_training import PROGRAM
from tests.benchmarks.floor import measure
from tests.benchmarks.rows import Row, show

ROOT = Path(__file__).parent.parent.parent
OUR_IMAGES = 55_000
"""5,000 of the 60,000 training images are our validation images."""
THEIR_IMAGES = 60_000

_EPOCH = re.compile(r"^epoch (\d+)/\d+ .* (\S+) s$", re.MULTILINE)
_ACCURACY = re.compile(r"^test_loss \S+  test_accuracy (\S+)$", re.MULTILINE)


def speed_rows(data_folder: Path, rounds: int = 3, epochs: int = 5) -> list[Row]:
    """Seconds of the first epoch and of the later ones, with their validation, against the script's and the floor."""
    warm: dict[str, list[float]] = {"ours": [], "unsaved": [], "theirs": []}
    first: dict[str, list[float]] = {"ours": [], "unsaved": [], "theirs": []}
    for _ in range(rounds):
        for name, output in (
            ("theirs", _plain(data_folder, epochs, seed=0)),
            ("ours", _ours(data_folder, epochs, seed=0, checkpoints=True)),
            ("unsaved", _ours(data_folder, epochs, seed=0, checkpoints=False)),
        ):
            seconds = [float(value) for _, value in _EPOCH.findall(output)]
            first[name].append(seconds[0])
            warm[name].append(statistics.median(seconds[1:]))
    floors = {threads: measure(threads) for threads in (1, usable_cores())}
    return [
        Row(
            "seconds per 1,000 training images, warm epochs",
            [1_000 * seconds / OUR_IMAGES for seconds in warm["ours"]],
            [1_000 * seconds / THEIR_IMAGES for seconds in warm["theirs"]],
            "s",
            "the tutorial's plain script; at most 0.36",
        ),
        Row("first epoch, compilation included", first["ours"], first["theirs"], "s", "the plain script"),
        Row("warm epoch with checkpoints", warm["ours"], warm["unsaved"], "s", "without checkpoints; at most 1.05"),
        *(
            Row(
                f"warm epoch and the machine's floor, {threads} thread{'s'[: threads > 1]}",
                warm["ours"],
                [floor.seconds] * rounds,
                "s",
                f"matrix products at {floor.gflop_per_second:.0f} GFLOP/s, "
                f"optimizer's memory traffic at {floor.gigabytes_per_second:.0f} GB/s; ours uses one thread",
            )
            for threads, floor in floors.items()
        ),
    ]


def accuracy_row(data_folder: Path, seeds: int = 5, epochs: int = 20) -> Row:
    """Test accuracy in percent after a whole training, for several seeds."""
    ours: list[float] = []
    theirs: list[float] = []
    for seed in range(seeds):
        for found, output in (
            (ours, _ours(data_folder, epochs, seed, checkpoints=False)),
            (theirs, _plain(data_folder, epochs, seed)),
        ):
            match = _ACCURACY.search(output)
            assert match, output
            found.append(100 * float(match[1]))
    difference = statistics.mean(ours) - statistics.mean(theirs)
    return Row(
        f"test accuracy, {seeds} seeds",
        ours,
        theirs,
        "%",
        f"the plain script; ours is {difference:+.2f} points in the mean, at least -0.10",
    )


def _plain(data_folder: Path, epochs: int, seed: int) -> str:
    return _run(
        ["-m", "tests.benchmarks.plain_script", f"--data-folder={data_folder}", f"--epochs={epochs}", f"--seed={seed}"],
        ROOT,
    )


def _ours(data_folder: Path, epochs: int, seed: int, checkpoints: bool) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [f"--data-folder={data_folder}", f"--epochs={epochs}", f"--seed={seed}"]
        told = {"OUTPUTS_FOLDER": f"{scratch}/outputs", "ACCELERATOR": "cpu"}
        told |= {"CHECKPOINT_FOLDER": f"{scratch}/checkpoints"} if checkpoints else {}
        return _run(["-m", "digits.train", *arguments], PROGRAM, **told)


def _run(arguments: list[str], folder: Path, **told: str) -> str:
    environment = {**os.environ, **told}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=0)
    options = parser.parse_args()
    folder = options.data_folder.absolute()
    rows = speed_rows(folder, options.rounds, options.epochs) if options.rounds else []
    rows += [accuracy_row(folder, options.seeds)] if options.seeds else []
    show(rows)
