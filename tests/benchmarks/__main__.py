"""Every figure of docs/figures.md, measured on this machine: `make bench`, or `make bench ARGS="training"` for a part.

    python -m tests.benchmarks [training] [pipeline] [upload] [history] [cluster] [serve] [--pairs 3] [--seeds 5]

The data is MNIST, as the pipeline finds it: MNIST_MIRRORS names a mirror where the public ones are out of reach.
"""

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

from infra.settings import load_settings
from tasks.dataset_catalog import describe_dataset
from tasks.datasets.obtain import obtain_dataset
from tests.benchmarks import cluster, history, serving, training, whole_pipeline
from tests.benchmarks.rows import show

PARTS = ("training", "pipeline", "upload", "history", "cluster", "serve")


def main() -> None:
    """Measure the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--pairs", type=int, default=3, help="how often each pair is timed, in turn (%(default)s)")
    parser.add_argument("--seeds", type=int, default=0, help="compare accuracies over so many seeds, minutes each")
    options = parser.parse_args()
    parts = options.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    settings = load_settings()
    folder = obtain_dataset(describe_dataset("mnist", settings.dataset_catalog), settings).folder
    sys.stdout.write(f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}\n\n")
    if "training" in parts:
        show(training.speed_rows(folder, options.pairs))
        if options.seeds:
            show([training.accuracy_row(folder, options.seeds)])
    if "pipeline" in parts:
        show(whole_pipeline.rows(folder, options.pairs))
    if "upload" in parts:
        # By itself: a child's peak of memory is at least what this process, with Prefect in it, has at the fork.
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", "tests.benchmarks.upload", "1024", str(options.pairs)], check=True)
    if "history" in parts:
        show(history.rows(folder, options.pairs))
    if "cluster" in parts:
        show(cluster.rows(folder, options.pairs))
    if "serve" in parts:
        show(serving.rows(options.pairs))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
