"""The whole pipeline with `--compute ray` against `--compute local`, and what a node from zero costs.

    python -m tests.benchmarks cluster [--pairs 3]

The cluster's head, autoscaler and nodes are real and run on this machine; the GPU that a node has is a claim in Ray's
books. Both use the same Prefect server, MLflow server and S3 server. Each training is one of its own, and what its
epochs took is left out; their number is the least that gives a champion to compare with.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.rows import Row
from tests.benchmarks.whole_pipeline import run_pipeline, running_server
from tests.ray_cluster import ray_cluster

EPOCHS = 3


def rows(mirror: Path, pairs: int = 3) -> list[Row]:
    """Everything but the epochs on a warm cluster against this machine, and a run whose node must come first."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # A node stays between two runs, but not for ever: the last run waits for its end.
        with ray_cluster(scratch, idle_seconds=60) as (cluster, services), running_server(scratch / "prefect") as api:

            def run(seed: int, *flags: str) -> dict[str, Any]:
                given = {**services, **api, "MNIST_MIRRORS": str(mirror)}
                all_flags = (f"--epochs={EPOCHS}", f"--seed={seed}", *flags)
                seconds, report = run_pipeline(scratch / "home", scratch / "prefect", *all_flags, **given)
                return {**report, "beyond epochs": seconds - report["epoch_seconds"]}

            on_cluster = ("--compute=ray", "--accelerator=cpu")
            run(0)
            cold = [run(1, *on_cluster)]
            local, ray = [], []
            for seed in range(2, 2 + 2 * pairs, 2):
                local.append(run(seed))
                ray.append(run(seed + 1, *on_cluster))
            cluster.wait_for_nodes(0)
            cold.append(run(2 + 2 * pairs, *on_cluster))

    def row(name: str, key: Callable[[dict[str, Any]], float], note: str = "local") -> Row:
        return Row(name, list(map(key, ray)), list(map(key, local)), "s", note)

    more = median(one["beyond epochs"] - other["beyond epochs"] for one, other in zip(ray, local, strict=True))
    steps = [
        row(f"{kind}, {name}", lambda report, kind=kind, name=name: report[kind][name])  # type: ignore[misc]
        for kind in ("seconds", "phases")
        for name in ray[0][kind]
    ]
    return [
        row(
            "everything but the epochs, warm cluster",
            lambda report: report["beyond epochs"],
            f"local; at most 10 s more, here {more:+.1f} s",
        ),
        *steps,
        Row("phase scaling, no node before", [report["phases"]["scaling"] for report in cold], None, "s", ""),
    ]
