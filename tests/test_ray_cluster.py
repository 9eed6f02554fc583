"""Compute on a real Ray cluster that starts with no node: its autoscaler starts and ends real raylets.

The GPU is a claim in Ray's books, no device, so `--accelerator cpu` says that the CPU is meant.
"""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import mlflow
import psutil
import pytest

from infra.compute import DEFAULT_OPTIONS, ClusterOptions, Job, Workload, compute_target
from infra.compute.ray_cluster import RayCluster
from infra.compute.ray_dashboard import check_addresses
from infra.errors import ComputeUnavailable, SettingsError, TrainingFailed
from infra.settings import Settings, load_settings
from tests import ray_cluster
from tests.conftest import SmallDataset, small_pipeline
from tests.pipeline import QUICK, ROOT, Pipeline, descendants, still_running, wait_until
from tests.s3_server import KEY_ID, SECRET
from tests.small_dataset import entries

# Each start of a program costs seconds of a core, and a test here starts up to ten.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOY = """
    import json, os, sys, time
    if sys.argv[1] == "devices":
        print(json.dumps({"devices": [{"kind": "cpu", "name": "a claim, no device"}]}))
        sys.exit()
    print("standing by", flush=True)
    line = sys.stdin.readline()
    if not line: sys.exit()
    arguments = json.loads(line)["arguments"]
"""


class Services:
    """A store, a tracker and a cluster on loopback, and computes on them."""

    def __init__(self, folder: Path, cluster: ray_cluster.RayCluster, environment: dict[str, str]) -> None:
        self.folder = folder
        self.cluster = cluster
        self.environment = environment

    @property
    def settings(self) -> Settings:
        return load_settings(self.environment)

    def compute(self, identity: str, body: str, patience_seconds: float = 60, **options: object) -> RayCluster:
        """A compute for a program that does `body` with its `arguments`."""
        program = self.folder / identity / "toy"
        program.mkdir(parents=True, exist_ok=True)
        (program / "__main__.py").write_text(textwrap.dedent(TOY) + textwrap.dedent(body))
        chosen = ClusterOptions(**{"provision_timeout": 300, "lease_timeout": 120, **options})
        workload = Workload(program, "train", (), f"training-{identity}")
        cluster = RayCluster(self.cluster.jobs_url, self.settings, "cpu", chosen, workload)
        cluster.patience_seconds = patience_seconds
        return cluster

    def job(self, identity: str, *arguments: str) -> Job:
        return Job(self.folder / identity / "toy", ("train", *arguments))


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("ray")
    with ray_cluster.ray_cluster(folder) as (cluster, environment), pytest.MonkeyPatch.context() as patch:
        # The libraries read these by themselves, and the computes of these tests are in this process.
        for name, value in environment.items():
            if name.startswith(("AWS_", "RAY_AUTH_")):
                patch.setenv(name, value)
        yield Services(folder, cluster, {**environment, "PIPELINE_HOME": str(folder / "home")})


def test_a_node_comes_for_the_job_and_is_gone_afterwards(services: Services) -> None:
    assert services.cluster.nodes() == []
    compute = services.compute("scale", 'print("said", arguments[1], flush=True)\nfor n in range(300): print(n)')
    told: list[str] = []
    try:
        description = compute.provision(told.append)
        assert description.accelerator == "cpu"
        assert "1 GPU claimed" in str(description)
        assert any("pending demand 1 x 1 CPU, 1 GPU" in line for line in told), told
        assert len(services.cluster.nodes()) == 1
        lines = list(compute.run(services.job("scale", "it's $(b)")))
    finally:
        compute.release()
    assert lines[0] == "job training-scale-1"
    assert lines[lines.index("said it's $(b)") + 1 :] == [str(number) for number in range(300)]
    assert 0 < compute.gpu_seconds()["training-scale-1"] < 300
    services.cluster.wait_for_nodes(0)
    compute.release()


def test_nothing_that_the_cluster_shows_holds_a_secret(services: Services) -> None:
    jobs = httpx.get(f"{services.cluster.jobs_url}/api/jobs/", timeout=20).text
    assert "training-scale-1" in jobs
    assert SECRET not in jobs
    assert KEY_ID not in jobs


def test_a_node_that_is_lost_is_replaced_and_two_jobs_share_the_cluster(services: Services) -> None:
    # The mark stands for the checkpoints: the second attempt knows what the first has done.
    body = """
        if os.path.exists(arguments[1]): print("continued", flush=True); sys.exit()
        open(arguments[1], "w").close()
        print("begun", os.getpid(), flush=True)
        time.sleep(600)
    """
    other = services.compute("beside", 'print("undisturbed")')
    compute = services.compute("lost", body, max_restarts=1)
    lines = []
    try:
        with ThreadPoolExecutor(1) as pool:
            for line in compute.run(services.job("lost", str(services.folder / "mark"))):
                lines.append(line)
                if line.startswith("begun"):
                    services.cluster.kill_node()
                    beside = pool.submit(lambda: list(other.run(services.job("beside"))))
            assert "undisturbed" in beside.result(400)
        first = psutil.pids()
        assert int(next(line for line in lines if line.startswith("begun")).split()[1]) not in first
    finally:
        compute.release()
        other.release()
    assert lines[-1] == "continued"
    assert any(line.startswith("node lost: ") and "restart 1 of 1" in line for line in lines)


def test_the_kind_of_gpu_that_was_asked_for_comes(services: Services) -> None:
    compute = services.compute("kind", "", gpu_type=ray_cluster.KIND)
    try:
        compute.provision()
        kinds = [f"accelerator_type:{ray_cluster.KIND}" in node["resources_total"] for node in services.cluster.nodes()]
        assert True in kinds
        list(compute.run(services.job("kind")))
    finally:
        compute.release()


def test_a_program_that_fails_is_told_with_its_status_and_not_repeated(services: Services) -> None:
    compute = services.compute("fails", "sys.exit(3)")
    try:
        with pytest.raises(TrainingFailed, match="exit status 3"):
            list(compute.run(services.job("fails")))
    finally:
        compute.release()


def test_an_abandoned_job_is_stopped_and_one_of_a_flow_that_died_is_found_again(services: Services) -> None:
    compute = services.compute("abandoned", "print(os.getpid(), flush=True)\ntime.sleep(600)")
    try:
        lines = compute.run(services.job("abandoned"))
        process = psutil.Process(int(next(line for line in lines if line.isdigit())))
        # Of a flow on another machine, as far as one sees: who finds it and does not train leaves it as it is.
        assert compute._lease is not None
        compute._lease._holder = "elsewhere:1"
        compute._lease._write(released=False)
        visitor = services.compute("abandoned", "print(os.getpid(), flush=True)\ntime.sleep(600)")
        visitor.provision()
        visitor.release()
        assert still_running([process]) == [process]
        # A flow that comes back to a job that runs, as after a kill: it sees the whole log, and starts no second job.
        again = services.compute("abandoned", "print(os.getpid(), flush=True)\ntime.sleep(600)")
        told: list[str] = []
        again.provision(told.append)
        assert any("Found job training-abandoned-1" in line for line in told)
        found = again.run(services.job("abandoned"))
        assert next(line for line in found if line.isdigit()) == str(process.pid)
        found.close()  # type: ignore[attr-defined]
        wait_until(lambda: still_running([process]) == [], 120, "the program's end")
        lines.close()  # type: ignore[attr-defined]
        again.release()
    finally:
        compute.release()
    services.cluster.wait_for_no_job()


@pytest.mark.parametrize(
    ("asked", "told"),
    [({"gpus": 8}, "1 CPU, 8 GPU"), ({"gpu_type": "H100"}, "1 CPU, 1 GPU, of the type H100")],
    ids=["count", "kind"],
)
def test_what_no_node_has_is_refused_and_no_demand_stays(services: Services, asked: dict[str, Any], told: str) -> None:
    compute = services.compute("none-has-it", "", **asked)
    with pytest.raises(ComputeUnavailable, match=rf"(?s)can never give.*\({told}\).*It offers"):
        compute.provision()
    compute.release()
    wait_until(lambda: services.cluster.demand() == [], 60, "the end of the demand")
    services.cluster.wait_for_no_job()


def test_time_that_runs_out_is_told_and_nothing_is_held(services: Services) -> None:
    compute = services.compute("late", "", provision_timeout=1)
    with pytest.raises(ComputeUnavailable, match=r"(?s)within 1 s \(--provision-timeout\).*The cluster offers: a head"):
        compute.provision()
    services.cluster.wait_for_no_job()


def test_a_cost_at_its_limit_ends_the_job(services: Services) -> None:
    compute = services.compute("dear", "time.sleep(600)", price_per_hour=3600, max_cost=1)
    try:
        with pytest.raises(TrainingFailed, match=r"--max-cost is 1"):
            list(compute.run(services.job("dear")))
    finally:
        compute.release()
    services.cluster.wait_for_no_job()


def test_the_whole_flow_outlives_a_kill_of_itself_and_the_loss_of_its_node(
    services: Services, small_dataset: SmallDataset, prefect_api: str, tmp_path: Path
) -> None:
    epochs = 40
    flags = (*QUICK, f"--epochs={epochs}")
    there = small_pipeline(tmp_path / "there", prefect_api, small_dataset)
    there.environment = {**services.environment, **there.environment}
    there.folder.mkdir()
    on_cluster = (*flags, "--compute=ray", "--accelerator=cpu", "--price-per-hour=3600", "--lease-timeout=300")
    killed = there.start(*on_cluster)
    there.wait_for_log("Submitted job", killed, 300)
    ray_cluster.kill_all(descendants(killed.pid))
    killed.communicate()

    again = there.start(*on_cluster)
    try:
        there.wait_for_log("Found job", again, 300)
        there.wait_for_log(f"epoch 1/{epochs}", again, 300)
        services.cluster.kill_node()
        stdout, _ = again.communicate(timeout=400)
    finally:
        if again.poll() is None:
            ray_cluster.kill_all(descendants(again.pid))
    assert again.returncode == 0, there.log
    assert "restart 1 of 3, from the last checkpoint" in there.log
    services.cluster.wait_for_no_job()

    outcome = json.loads(stdout)
    client = mlflow.MlflowClient(there.settings.mlflow_tracking_uri)
    for metric in ("loss", "val_accuracy", "epoch_seconds"):
        history = client.get_metric_history(outcome["run_id"], metric)
        assert [point.step for point in history] == list(range(1, epochs + 1))
    metrics = there.tracker.get_run(outcome["run_id"]).metrics
    assert metrics["cost"] == pytest.approx(metrics["gpu_seconds"])
    assert metrics["gpu_seconds"] > 1
    assert metrics["phase_scaling_seconds"] > 0
    kept = services.folder / "nodes" / ".cache" / "keras-at-scale" / "data"
    assert {path.name for path in kept.iterdir()} == {entry.sha256 for entry in entries(small_dataset.catalog.parent)}

    (tmp_path / "here").mkdir()
    here = small_pipeline(tmp_path / "here", prefect_api, small_dataset).run(*flags)
    assert here["weights_sha256"] == outcome["weights_sha256"]
    services.cluster.wait_for_nodes(0)


def test_two_flows_at_once_have_a_node_each(
    services: Services, small_dataset: SmallDataset, prefect_api: str, tmp_path: Path
) -> None:
    pipelines, processes = [], []
    for seed in (2, 3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        pipeline = small_pipeline(folder, prefect_api, small_dataset)
        pipeline.environment = {**services.environment, **pipeline.environment}
        flags = (*QUICK, "--epochs=100", f"--seed={seed}", "--model-name=two-at-once", "--compute=ray")
        pipelines.append(pipeline)
        processes.append(pipeline.start(*flags, "--accelerator=cpu"))
    for pipeline, process in zip(pipelines, processes, strict=True):
        pipeline.wait_for_log("epoch 3/100", process, 300)
    assert all(process.poll() is None for process in processes), "they are to train at the same time"
    assert len(services.cluster.nodes()) == 2
    outcomes = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert len({outcome["run_id"] for outcome in outcomes}) == 2
    assert sorted(outcome["model_version"] for outcome in outcomes) == [1, 2]
    services.cluster.wait_for_no_job()


@pytest.mark.parametrize("how", ["SIGTERM while the node is awaited", "cancelled in Prefect in training"])
def test_a_flow_that_is_told_to_stop_leaves_no_job(
    how: str, services: Services, small_dataset: SmallDataset, prefect_api: str, tmp_path: Path
) -> None:
    pipeline = small_pipeline(tmp_path, prefect_api, small_dataset)
    pipeline.environment = {**services.environment, **pipeline.environment}
    process = pipeline.start(*QUICK, "--epochs=1000", f"--seed={len(how)}", "--compute=ray", "--accelerator=cpu")
    if how.startswith("SIGTERM"):
        pipeline.wait_for_log("Submitted job", process, 300)
        process.terminate()
    else:
        pipeline.wait_for_log("epoch 2/1000", process, 300)
        (run,) = pipeline.tracker.find_runs("keras-mnist", {"dataset": "mnist"}, status="RUNNING")
        flow_run = f"{prefect_api}/flow_runs/{run.tags['prefect.flow_run_id']}"
        httpx.post(f"{flow_run}/set_state", json={"state": {"type": "CANCELLING"}}).raise_for_status()
    process.communicate(timeout=120)
    assert process.returncode == 143
    services.cluster.wait_for_no_job()
    if how.startswith("cancelled"):
        ended = pipeline.tracker.get_run(run.run_id)
        assert (ended.status, ended.tags["cause"]) == ("KILLED", "cancelled in Prefect")
        assert httpx.get(flow_run).json()["state_type"] == "CANCELLED"


def test_a_job_ends_itself_when_nobody_renews_its_lease(services: Services) -> None:
    compute = services.compute("widowed", "", lease_timeout=5)
    compute.provision()
    # What is left of a flow that was killed: a lease that grows old, and nobody who stops the job.
    assert compute._lease is not None
    compute._lease.end()
    services.cluster.wait_for_no_job()
    compute.release()


def test_what_is_held_is_listed_and_released_by_hand(services: Services) -> None:
    def answer(*words: str) -> str:
        command = [sys.executable, "-m", "infra.compute", *words]
        environment = {**os.environ, **services.environment}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    compute = services.compute("held", "")
    try:
        compute.provision()
        listed = answer("list")
        assert "1 CPU, 1 GPU" in listed
        assert "job training-held-1  RUNNING  lease: renewed" in listed
        assert "ended training-held-1" in answer("release", "--yes")
        services.cluster.wait_for_no_job()
    finally:
        compute.release()


def test_no_node_is_left_after_all_this(services: Services) -> None:
    services.cluster.wait_for_nodes(0)
    assert services.cluster.demand() == []


def test_a_head_that_dies_is_told_and_what_ran_there_ends(services: Services) -> None:
    # The last test: there is no cluster afterwards.
    compute = services.compute("head", "print(os.getpid(), flush=True)\ntime.sleep(600)", patience_seconds=3)
    lines = compute.run(services.job("head"))
    process = psutil.Process(int(next(line for line in lines if line.isdigit())))
    services.cluster.kill_head()
    with pytest.raises(TrainingFailed, match="has been silent"):
        list(lines)
    compute.release()
    wait_until(lambda: still_running([process]) == [], 120, "the program's end")


@pytest.mark.parametrize(
    ("changes", "elsewhere", "told"),
    [
        ({"OBJECT_STORE_URI": "file:///tmp/store"}, False, "OBJECT_STORE_URI is file:"),
        ({"MLFLOW_TRACKING_URI": "sqlite:////tmp/mlflow.db"}, False, "a database that nodes cannot reach"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}, True, "this machine alone"),
        ({"AWS_ENDPOINT_URL": "http://localhost:9000"}, True, "AWS_ENDPOINT_URL is http://localhost:9000"),
    ],
)
def test_an_address_that_nodes_cannot_reach_is_refused(changes: dict[str, str], elsewhere: bool, told: str) -> None:
    good = {"OBJECT_STORE_URI": "s3://bucket/store", "MLFLOW_TRACKING_URI": "http://mlflow.example:5000"}
    check_addresses(load_settings(good), elsewhere)
    with pytest.raises(SettingsError, match=told):
        check_addresses(load_settings({**good, **changes}), elsewhere)


@pytest.mark.parametrize(
    ("flags", "environment", "told"),
    [
        (["--gpus=1"], {}, "--gpus: only a cluster"),
        (["--compute=ray", "--gpus=0", "--gpu-type=T4"], {}, "--gpu-type T4 asks for a GPU, and --gpus is 0"),
        (["--compute=ray", "--max-cost=3"], {}, "Add --price-per-hour"),
        (["--compute=ray"], {"RAY_JOBS_URL": "http://127.0.0.1:9"}, "OBJECT_STORE_URI is file:"),
    ],
)
def test_what_makes_no_sense_is_refused_with_status_2(
    flags: list[str], environment: dict[str, str], told: str, tmp_path: Path
) -> None:
    pipeline = Pipeline(tmp_path, {"RAY_JOBS_URL": "", **environment})
    pipeline.run(*flags, status=2)
    assert told in pipeline.log


def test_a_cluster_is_named_by_the_address_of_its_dashboard(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="RAY_JOBS_URL is 'ftp://here'"):
        load_settings({"RAY_JOBS_URL": "ftp://here"})
    with pytest.raises(SettingsError, match="Set RAY_JOBS_URL"):
        compute_target("ray", load_settings({}), "cpu", DEFAULT_OPTIONS, Workload(tmp_path, "train", (), "training-x"))


def test_without_ray_it_says_how_to_install_it(tmp_path: Path) -> None:
    code = """
        import sys
        sys.modules["ray"] = None
        from infra.compute.ray_dashboard import connect
        from infra.errors import SettingsError
        try:
            connect("http://127.0.0.1:9")
        except SettingsError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install '.[ray]'" in done.stdout
