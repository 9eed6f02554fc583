"""A cluster that is launched by Ray's own launcher over a real ssh, used with its token, and taken down.

The other machine is this one, in namespaces of its own: see `tests/ssh_machine.py`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infra.compute import ClusterOptions, Job, Workload, compute_target
from infra.compute.ray_launcher import TOKEN_THERE, ClusterOfFile, LaunchedCluster, read_cluster_file
from infra.errors import ComputeUnavailable, SettingsError
from infra.settings import Settings, load_settings
from tasks.dataset_catalog import describe_dataset
from tasks.mnist_training import mnist_training
from tasks.programs.mnist.digits.hyperparameters import DEFAULTS
from tests.http_server import serving
from tests.pipeline import ROOT, wait_until
from tests.s3_server import SECRET, s3_server
from tests.ssh_machine import PROGRAMS, SshMachine, ssh_machine
from tests.system_programs import need

# A launch takes a quarter of a minute on an idle machine, and so does `ray down`.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

READY_FILE = ROOT / "infra" / "ray-cluster.yaml"

TOY = """
    import json, os, sys
    if sys.argv[1] == "devices":
        print(json.dumps({"devices": [{"kind": "cpu", "name": "none at all"}]}))
        sys.exit()
    print("standing by", flush=True)
    if not sys.stdin.readline(): sys.exit()
    for name, value in sorted(os.environ.items()): print(name, value)
"""

FLOW = """
    import sys, time
    from pathlib import Path
    from threading import Event
    from infra.compute.ray_launcher import ClusterOfFile
    from infra.settings import load_settings
    settings = load_settings()
    cluster = ClusterOfFile(settings.ray_cluster_file, settings)
    tunnel = cluster.join(lambda line: print(line, flush=True), time.monotonic() + 300, Event())
    print("tunnel", tunnel._process.pid, flush=True)
    time.sleep(600)
"""
"""A flow as far as the cluster is concerned, to be killed."""


class Launching:
    """A machine to launch clusters on, services on loopback, and computes."""

    def __init__(self, folder: Path, machine: SshMachine, environment: dict[str, str]) -> None:
        self.folder = folder
        self.machine = machine
        self.environment = environment

    def settings(self, file: Path) -> Settings:
        return load_settings({**self.environment, "RAY_CLUSTER_FILE": str(file)})

    def compute(self, file: Path, identity: str = "training-toy") -> LaunchedCluster:
        program = self.folder / "toy"
        program.mkdir(exist_ok=True)
        (program / "__main__.py").write_text(textwrap.dedent(TOY))
        options = ClusterOptions(gpus=0, provision_timeout=300, lease_timeout=120)
        workload = Workload(program, "train", (), identity)
        target = compute_target("ray", self.settings(file), "cpu", options, workload)
        assert isinstance(target, LaunchedCluster)
        return target

    def job(self) -> Job:
        return Job(self.folder / "toy", ("train",))

    def cli(self, file: Path, *words: str) -> str:
        command = [sys.executable, "-m", "infra.compute", *words]
        environment = {**os.environ, **self.environment, "RAY_CLUSTER_FILE": str(file)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def flow(self, file: Path) -> "subprocess.Popen[str]":
        environment = {**os.environ, **self.environment, "RAY_CLUSTER_FILE": str(file)}
        code = textwrap.dedent(FLOW)
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )

    def wait_until_nothing_runs(self) -> None:
        wait_until(lambda: self.machine.processes() == [], 60, "the end of every process of the cluster")


@pytest.fixture(scope="module")
def launching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launching]:
    need(*PROGRAMS)
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    folder = tmp_path_factory.mktemp("launching")
    with (
        pytest.MonkeyPatch.context() as patch,
        s3_server(folder / "s3", "bucket") as s3,
        serving() as tracker,
        ssh_machine(s3.environment) as machine,
    ):
        # RAY_TMPDIR: where the launcher keeps what it knows of a cluster.
        here = {"PATH": machine.path, "RAY_TMPDIR": str(machine.folder), "RAY_AUTH_MODE": "disabled"}
        for name, value in {**s3.environment, **here}.items():
            patch.setenv(name, value)
        environment = {
            **s3.environment,
            # Nodes ask whether it is there, and no more.
            "MLFLOW_TRACKING_URI": tracker.address.removesuffix("/folder/"),
            "OBJECT_STORE_URI": "s3://bucket/store",
            "PIPELINE_HOME": str(folder / "home"),
        }
        yield Launching(folder, machine, environment)


def test_it_is_launched_for_a_job_that_runs_with_its_token_and_is_taken_down(
    launching: Launching, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("infra", "ray", "urllib3"):
        caplog.set_level("DEBUG", name)
    file = launching.machine.cluster_file("whole")
    compute = launching.compute(file)
    compute.check()
    assert launching.machine.processes() == [], "a look has launched something"
    cluster = ClusterOfFile(file, launching.settings(file))
    assert "cluster whole  ray  down" in launching.cli(file, "list")
    told: list[str] = []
    try:
        compute.provision(told.append)
        assert cluster.token is not None
        token = cluster.token.read_text()
        assert cluster.token.stat().st_mode & 0o777 == 0o600
        url = str(compute._url)
        assert httpx.get(f"{url}/api/jobs/").status_code == 401
        assert httpx.get(f"{url}/api/jobs/", headers={"Authorization": "Bearer guessed"}).status_code == 403
        jobs = httpx.get(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}).text
        assert "training-toy-1" in jobs
        listening = [one.laddr for one in psutil.net_connections() if one.status == psutil.CONN_LISTEN and one.laddr]
        assert [place.ip for place in listening if place.port == dashboard_port(file)] == ["127.0.0.1"]

        lines = list(compute.run(launching.job()))
        assert "standing by" in lines
        assert "RAY_AUTH_MODE token" in lines
        processes = launching.machine.processes()
        logs = "".join(path.read_text() for path in cluster.folder.glob("*.log"))
        for place in (jobs, logs, caplog.text, *told, *lines, *processes):
            assert token not in place
            assert SECRET not in place.replace(f"AWS_SECRET_ACCESS_KEY {SECRET}", "")
        # By this the head brings every node that it starts the token too.
        for_nodes = json.loads((launching.machine.home / "ray_bootstrap_config.yaml").read_text())
        assert for_nodes["file_mounts"] == {TOKEN_THERE: TOKEN_THERE}
        assert (launching.machine.home / TOKEN_THERE[2:]).read_text() == token

        listed = launching.cli(file, "list")
        assert "cluster whole  ray  up\n" in listed
        assert "1 have ended" in listed
    finally:
        compute.release()
    assert "Cluster whole was taken down" in caplog.text
    launching.wait_until_nothing_runs()
    # ssh's shared connection, which Ray opens, goes 10 s after its last use.
    wait_until(lambda: not tunnels(file), 30, "the end of the tunnel")


def test_one_that_is_up_is_used_and_left_and_not_taken_down_under_a_job(
    launching: Launching, caplog: pytest.LogCaptureFixture
) -> None:
    file = launching.machine.cluster_file("found")
    # What has no room on the head is refused: there is no other node.
    file.write_text(file.read_text().replace("--num-cpus=1", "--num-cpus=2"))
    told: list[str] = []
    first, second = launching.compute(file), launching.compute(file, "training-other")
    try:
        first.provision(lambda line: None)
        with ThreadPoolExecutor(1) as pool:
            provisioned = pool.submit(second.provision, told.append)
            wait_until(lambda: any(line.startswith("Submitted") for line in told), 120, "the second job")
            first.release()
            assert "Cluster found was NOT taken down: others use it: job training-other-1" in caplog.text
            provisioned.result(120)
        assert "Found cluster found, which is up already: it is not taken down at the end" in told
        assert "standing by" in list(second.run(launching.job()))
    finally:
        first.release()
        second.release()
    assert "cluster found  ray  up\n" in launching.cli(file, "list")
    assert "Cluster found was taken down\n" in launching.cli(file, "release", "--yes")
    launching.wait_until_nothing_runs()
    assert "cluster found  ray  down\n" in launching.cli(file, "release", "--yes")


def test_what_a_flow_that_is_killed_leaves_is_used_by_the_next_and_taken_down_by_hand(launching: Launching) -> None:
    file = launching.machine.cluster_file("killed")
    cluster = ClusterOfFile(file, launching.settings(file))
    flow = launching.flow(file)
    wait_until(lambda: "Starting the Ray runtime" in log_of(cluster, "up"), 120, "the middle of `ray up`")
    kill(flow)

    again = launching.flow(file)
    assert again.stdout is not None
    told = [again.stdout.readline() for _ in range(3)]
    assert "is being launched or taken down by process" in told[0]
    assert "Found cluster killed" in told[1]
    tunnel = psutil.Process(int(told[2].removeprefix("tunnel ")))
    kill(again)
    psutil.wait_procs([tunnel], timeout=30)
    assert not tunnel.is_running(), "the tunnel has outlived its flow"
    wait_until(lambda: not tunnels(file), 30, "the end of what the tunnel had started")
    assert "Cluster killed was taken down\n" in launching.cli(file, "release", "--yes")
    launching.wait_until_nothing_runs()


def test_half_a_launch_is_shown_and_taken_down_by_hand(launching: Launching) -> None:
    file = launching.machine.cluster_file("half", setup_commands=["sleep 600"])
    flow = launching.flow(file)
    wait_until(lambda: any("sleep" in line for line in launching.machine.processes()), 120, "the setup")
    kill(flow)
    # The launcher that goes on without its flow would keep the lock until its setup has ended.
    orphan = next(
        one for one in psutil.process_iter(["cmdline"]) if "up --yes" in words_of(one) and str(file) in words_of(one)
    )
    os.killpg(orphan.pid, signal.SIGKILL)
    assert "cluster half  ray  not up, and its head, in state setting-up, may cost" in launching.cli(file, "list")
    assert "Cluster half was taken down\n" in launching.cli(file, "release", "--yes")
    launching.wait_until_nothing_runs()
    assert "cluster half  ray  down\n" in launching.cli(file, "list")


def test_a_release_in_the_middle_of_the_launch_ends_it(launching: Launching) -> None:
    file = launching.machine.cluster_file("stopped", setup_commands=["sleep 600"])
    compute = launching.compute(file)
    with ThreadPoolExecutor(1) as pool:
        provisioned = pool.submit(compute.provision, lambda line: None)
        wait_until(lambda: any("sleep" in line for line in launching.machine.processes()), 120, "the setup")
        compute.release()
        with pytest.raises(ComputeUnavailable, match="was released before its cluster was up"):
            provisioned.result(60)
    launching.wait_until_nothing_runs()


def test_a_launch_that_fails_is_told_with_its_last_words_and_nothing_is_left(launching: Launching) -> None:
    file = launching.machine.cluster_file("failing", setup_commands=["echo no such wheel; false"])
    compute = launching.compute(file)
    with pytest.raises(
        ComputeUnavailable, match=r"(?s)failing.* was not launched: `ray up`.*no such wheel.*up\.log"
    ) as raised:
        compute.provision(lambda line: None)
    assert len(str(raised.value).splitlines()) < 10
    compute.release()
    launching.wait_until_nothing_runs()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"provider": {"type": "local", "head_ip": "127.0.0.3", "worker_ips": []}}, "Connection refused"),
        ({"auth": {"ssh_user": "root", "ssh_private_key": str(READY_FILE)}}, "Permission denied"),
    ],
)
def test_a_head_that_does_not_let_us_in_is_told_and_nothing_is_left(
    launching: Launching, changes: dict[str, Any], told: str
) -> None:
    file = launching.machine.cluster_file("wrong", **changes)
    compute = launching.compute(file)
    compute.check()
    with pytest.raises(ComputeUnavailable, match=rf"(?s)wrong.* was not launched: `ray up`.*{told}") as raised:
        compute.provision(lambda line: None)
    assert len(str(raised.value).splitlines()) < 10
    compute.release()
    launching.wait_until_nothing_runs()


def test_a_file_that_turns_the_token_off_is_not_launched(launching: Launching) -> None:
    wrong: dict[str, Any] = {
        "head_start_ray_commands": ["RAY_AUTH_MODE=disabled ray start --head"],
        "file_mounts": {},
    }
    for told, value in wrong.items():
        file = launching.machine.cluster_file("open", **{told: value})
        with pytest.raises(SettingsError, match=f"whose {told} leave Ray's token authentication off"):
            launching.compute(file).check()


def test_a_cluster_that_lets_anybody_in_is_taken_down_at_once(launching: Launching) -> None:
    file = launching.machine.cluster_file("sly")
    file.write_text(file.read_text().replace("ray start", "export RAY_'AUTH'_MODE=disabled; ray start", 1))
    compute = launching.compute(file)
    with pytest.raises(ComputeUnavailable, match="does not ask for the token that it was given"):
        compute.provision(lambda line: None)
    compute.release()
    launching.wait_until_nothing_runs()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no such file"),
        ("a: [", r"is not YAML \(line 1\)"),
        ("provider: {type: local}", "is no cluster file: the whole breaks the rule required"),
        ("cluster_name: x\nprovider: {type: aws, region: {secret: word}}", r"provider\.region breaks the rule type"),
    ],
)
def test_a_file_that_is_wrong_is_refused(content: str | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=f"RAY_CLUSTER_FILE is .*{told}") as raised:
        read_cluster_file(load_settings({"RAY_CLUSTER_FILE": str(file)}).ray_cluster_file or file)
    assert "word" not in str(raised.value)


def test_one_cluster_is_named_and_not_two(tmp_path: Path) -> None:
    environment = {"RAY_CLUSTER_FILE": str(READY_FILE), "RAY_JOBS_URL": "http://127.0.0.1:8265"}
    with pytest.raises(SettingsError, match="are both set"):
        load_settings(environment)


def test_services_on_loopback_are_refused_for_a_head_elsewhere(tmp_path: Path) -> None:
    environment = {"OBJECT_STORE_URI": "s3://bucket/store", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    settings = load_settings({**environment, "PIPELINE_HOME": str(tmp_path)})
    with pytest.raises(SettingsError, match="this machine alone"):
        ClusterOfFile(READY_FILE, settings).check()


def test_an_address_is_refused_before_a_program_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "OBJECT_STORE_URI": "s3://bucket/store"}
    allowed = {"MLFLOW_TRACKING_URI": "https://mlflow.example.org", "OBJECT_STORE_URI": "s3://bucket/store"}
    for services, told in ((refused, "this machine alone"), (allowed, "needs ssh and rsync")):
        with pytest.raises(SettingsError, match=told):
            ClusterOfFile(READY_FILE, load_settings({**services, "PIPELINE_HOME": str(tmp_path)})).check()


def test_the_ready_file_is_as_ray_and_the_cloud_want_it_with_the_versions_of_here(tmp_path: Path) -> None:
    from botocore.session import Session
    from botocore.validate import ParamValidator
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read_cluster_file(READY_FILE))
    validate_config(config)
    rules = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node_type in config["available_node_types"].values():
        wrong = ParamValidator().validate({**node_type["node_config"], "MinCount": 1, "MaxCount": 1}, rules)
        assert not wrong.has_errors(), wrong.generate_report()
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert (head["resources"], gpu["min_workers"], gpu["max_workers"]) == ({"CPU": 0}, 0, 4)
    starts = " ".join(config["head_start_ray_commands"])
    assert "--num-cpus=0" in starts
    assert "--dashboard-host=127.0.0.1" in starts
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in " ".join(config[name])
    pinned = dict(re.findall(r'"([a-z0-9]+)(?:\[[a-z-]+\])?==([\d.]+)"', " ".join(config["worker_setup_commands"])))
    settings = load_settings({"PIPELINE_HOME": str(tmp_path)})
    training = mnist_training(describe_dataset("mnist", settings.dataset_catalog), DEFAULTS, settings)
    required = dict(requirement.split("==") for requirement in training.requirements)
    # MLflow brings its parts along, in its own version.
    required = {name: pinned_version for name, pinned_version in required.items() if not name.startswith("mlflow-")}
    assert pinned == required | {name: version(name) for name in ("ray", "boto3")}
    # All that is left of Ray's own defaults is among them.
    commands = [command for name, value in config.items() if name.endswith("_commands") for command in value]
    assert unchecked(commands) == []
    assert sum("--require-hashes" in command for command in config["worker_setup_commands"]) == 3


def unchecked(commands: list[str]) -> list[str]:
    """Those that run what they download, or install a Python package whatever its bytes are."""
    fetching = [command for command in commands if re.search(r"\b(curl|wget)\b|\|\s*(sudo\s+)?\w*sh\b|--seed", command)]
    installing = re.compile(r"\b(?:pip3?|pipx|uv|uv pip|uv tool|conda)\s+(?:install|sync|add)\b[^;&|]*")
    hits = [found for command in commands for found in installing.findall(command)]
    return fetching + [found for found in hits if "--require-hashes" not in found.split()]


def test_a_setup_command_that_checks_nothing_is_known() -> None:
    for wrong in (
        "curl -LsSf https://example.org/install | sh",
        "cat install.sh | sudo bash",
        "~/uv/bin/uv pip install ray",
        "test -x uv && python -m pip install --quiet ray && pip install --require-hashes -r lock",
        "uv venv --seed ~/env",
    ):
        assert unchecked([wrong]), wrong


def test_the_setup_of_the_ready_file_installs_from_the_locks_by_hash_and_refuses_other_bytes(tmp_path: Path) -> None:
    config = read_cluster_file(READY_FILE)
    mounts = {there: here for there, here in config["file_mounts"].items() if there != TOKEN_THERE}
    for there, here in mounts.items():
        shutil.copy(ROOT / here, tmp_path / there.removeprefix("~/"))
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.symlink_to(sys._base_executable)  # type: ignore[attr-defined]

    def run(command: str) -> "subprocess.CompletedProcess[str]":
        path = f"{python.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "HOME": str(tmp_path), "PATH": path, "UV_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    for command in config["setup_commands"] + config["worker_setup_commands"]:
        # 3 GB otherwise. Each package must have a hash for that as well.
        done = run(command.replace("uv pip install", "uv pip install --dry-run"))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / ".bashrc").read_text() == 'export PATH="$HOME/env/bin:$PATH"\n'

    lock = tmp_path / "requirements.lock"
    whole = lock.read_text()
    install = config["setup_commands"][-1].replace(f'"ray[default]=={version("ray")}"', f'"idna=={version("idna")}"')
    install = install.replace(f'"boto3=={version("boto3")}"', "")
    lock.write_text(re.sub("sha256:....", "sha256:0000", whole))
    refused = run(install)
    assert refused.returncode != 0
    assert f"Hash mismatch for `idna=={version('idna')}`" in refused.stderr
    lock.write_text(whole)
    assert run(install).returncode == 0


def test_a_mount_that_is_not_there_is_refused_before_anything_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    services = {"MLFLOW_TRACKING_URI": "https://mlflow.example.org", "OBJECT_STORE_URI": "s3://bucket/store"}
    settings = load_settings({**services, "PIPELINE_HOME": str(tmp_path)})
    for program in ("ssh", "rsync"):
        (tmp_path / program).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    # Its mounts are the project's, wherever one stands.
    ClusterOfFile(READY_FILE, settings).check()
    file = tmp_path / "cluster.yaml"
    file.write_text(READY_FILE.read_text().replace(" requirements-cuda.lock", " no-such.lock"))
    with pytest.raises(SettingsError, match=rf"file_mounts bring {ROOT}/no-such\.lock to every node: there is no such"):
        ClusterOfFile(file, settings).check()


def dashboard_port(file: Path) -> int:
    return int(re.findall(r"--dashboard-port=(\d+)", file.read_text())[0])


def tunnels(file: Path) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if f":localhost:{dashboard_port(file)}" in words_of(one)]


def words_of(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or ())


def log_of(cluster: ClusterOfFile, name: str) -> str:
    path = cluster.folder / f"{name}.log"
    return path.read_text() if path.exists() else ""


def kill(flow: "subprocess.Popen[str]") -> None:
    flow.send_signal(signal.SIGKILL)
    flow.wait()
