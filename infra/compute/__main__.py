"""What is held on the Ray cluster that RAY_JOBS_URL names, and ending what nobody needs.

python -m infra.compute list              the cluster, its nodes, the jobs of this pipeline and their leases
python -m infra.compute release [--yes]   end the jobs that are still there, after asking
"""

import infra.quiet_libraries  # noqa: F401  isort: skip

import argparse
import sys
import time

from infra.compute.ray_cluster import ACTIVE, connect, describe_nodes, forget_job, list_jobs, read_lease, stop_job
from infra.errors import PipelineError, SettingsError
from infra.object_store import ObjectStore
from infra.settings import load_settings, without_secrets


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
        if not settings.ray_jobs_url:
            raise SettingsError("No cluster is named.\nSet RAY_JOBS_URL to the address of its dashboard.")
        client, store = connect(settings.ray_jobs_url), ObjectStore(settings.object_store_uri)
        jobs = [job for job in list_jobs(client) if job["submission_id"].startswith("training-")]
        active = [job for job in jobs if job["status"] in ACTIVE]
        say(f"cluster {without_secrets(settings.ray_jobs_url)}")
        for node in describe_nodes(client):
            say(f"  {node}")
        for job in active:
            lease = read_lease(store, job["submission_id"])
            age = f"renewed {time.time() - lease['renewed']:.0f} s ago by {lease['holder']}" if lease else "none"
            say(f"  job {job['submission_id']}  {job['status']}  lease: {age}")
        say(f"{len(active)} jobs hold something or wait for it; {len(jobs) - len(active)} have ended")
        if options.command == "release" and active:
            if not options.yes:
                sys.stdout.write(f"End {len(active)} jobs? Their checkpoints are kept. [y/N] ")
                sys.stdout.flush()
                if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                    say("Nothing was ended.")
                    return 0
            for job in active:
                stop_job(client, job["submission_id"])
                forget_job(store, job["submission_id"])
                say(f"ended {job['submission_id']}")
    except PipelineError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    return 0


def say(line: str) -> None:
    """A line of the answer."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
