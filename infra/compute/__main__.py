"""Where programs can run, what is held there, and ending what nobody needs.

python -m infra.compute list              this machine and the cluster of RAY_JOBS_URL or RAY_CLUSTER_FILE: its state,
                                          its nodes, the jobs of this pipeline and their leases
python -m infra.compute release [--yes]   after asking, end the jobs that are still there, and take the cluster of
                                          RAY_CLUSTER_FILE down
"""

import infra.process_environment
import infra.terminal

if __name__ == "__main__":
    infra.terminal.attach()


import argparse
import sys
import time
from contextlib import closing, nullcontext
from typing import Any

from infra.addresses import without_secrets
from infra.compute.local_process import usable_cores
from infra.compute.ray_dashboard import connect, describe_nodes
from infra.compute.ray_job import ACTIVE, stop_job
from infra.compute.ray_lease import forget_job, read_lease
from infra.errors import ComputeUnavailable, PipelineError, UsageError
from infra.object_store import ObjectStore
from infra.settings import Settings, load_settings


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.compute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("list", "release"))
    parser.add_argument("--yes", action="store_true", help="release without asking")
    options = parser.parse_args()
    try:
        settings = load_settings()
        say(f"this machine  local  always there, {usable_cores()} cores")
        if settings.ray_cluster_file:
            of_file(settings, options.command == "release", options.yes)
        elif settings.ray_jobs_url:
            of_address(settings, settings.ray_jobs_url, options.command == "release", options.yes)
        else:
            say("no cluster is named: set RAY_JOBS_URL or RAY_CLUSTER_FILE to see one")
    except PipelineError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


def of_address(settings: Settings, url: str, release: bool, yes: bool) -> None:
    """The cluster that RAY_JOBS_URL names."""
    client = connect(url)
    active = show(settings, client, f"cluster {without_secrets(url)}  ray  up")
    if release and active and agreed(f"End {len(active)} jobs? Their checkpoints are kept.", yes):
        end(settings, client, active)


def of_file(settings: Settings, release: bool, yes: bool) -> None:
    """The cluster that RAY_CLUSTER_FILE describes."""
    from infra.compute.ray_launcher import ClusterOfFile

    assert settings.ray_cluster_file is not None
    cluster = ClusterOfFile(settings.ray_cluster_file, settings)
    what = f"cluster {cluster.name}  ray"
    try:
        state, tunnel = cluster.look()
    except ComputeUnavailable as error:
        if not release:
            raise
        state, tunnel = f"not to be reached: {error}", None
    with closing(tunnel) if tunnel else nullcontext():
        active: list[str] = []
        if tunnel:
            client = connect(tunnel.url, cluster.token)
            active = show(settings, client, f"{what}  {state}")
        else:
            say(f"{what}  {state}")
        todo = f"End {len(active)} jobs, their checkpoints kept, and t" if active else "T"
        if not release or state == "down" or not agreed(f"{todo}ake down cluster {cluster.name}?", yes):
            return
        if tunnel:
            end(settings, client, active)
        cluster.take_down(say)


def show(settings: Settings, client: Any, state: str) -> list[str]:
    """Print a cluster with its nodes, jobs and leases; returns the jobs that hold something or wait for it."""
    store = ObjectStore(settings.object_store_uri)
    jobs = [job for job in client.list_jobs() if (job.submission_id or "").startswith("training-")]
    active = [job for job in jobs if job.status in ACTIVE]
    say(state)
    for node in describe_nodes(client):
        say(f"  {node}")
    for job in active:
        lease = read_lease(store, job.submission_id)
        age = f"renewed {time.time() - lease['renewed']:.0f} s ago by {lease['holder']}" if lease else "none"
        say(f"  job {job.submission_id}  {job.status}  lease: {age}")
    say(f"  {len(active)} jobs hold something or wait for it; {len(jobs) - len(active)} have ended")
    return [job.submission_id for job in active]


def end(settings: Settings, client: Any, jobs: list[str]) -> None:
    """End jobs for good."""
    for job in jobs:
        stop_job(client, job)
        forget_job(ObjectStore(settings.object_store_uri), job)
        say(f"ended {job}")


def agreed(question: str, yes: bool) -> bool:
    """Ask, unless the answer was given ahead."""
    if yes:
        return True
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    say("Nothing was ended.")
    return False


def say(line: str) -> None:
    """A line of the answer."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    infra.terminal.run(main)
