"""What takes a proxy that the environment names, and what never does."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import SettingsError, TrackerError
from infra.experiment_tracker import ExperimentTracker
from infra.mirror import MirrorFile, MirrorUnreachable, fetch_file
from infra.proxies import keep_loopback_direct, left_out_proxy, proxy_for
from infra.settings import load_settings
from tests.conftest import ROOT
from tests.http_server import HttpServer, refusing, serving
from tests.mlflow_server import MlflowServer
from tests.s3_server import s3_server

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        # Set first, for what the test sets is then undone as well.
        for spelt in (name, name.lower()):
            monkeypatch.setenv(spelt, "")
            monkeypatch.delenv(spelt)


@pytest.fixture
def proxy() -> Iterator[HttpServer]:
    """A proxy that answers 404 to whatever it is asked for, and counts."""
    with serving() as server:
        yield server


ALL_SERVICES = """
import infra.process_environment
import hashlib, sys
from pathlib import Path
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from infra.experiment_tracker import ExperimentTracker
from infra.mirror import MirrorFile, fetch_file
from infra.object_store import ObjectStore
from infra.settings import load_settings

settings = load_settings()
with get_client(sync_client=True) as client:
    print("Prefect", client.api_healthcheck())
tracker = ExperimentTracker(settings)
tracker.check_reachable()
print("MLflow", tracker.experiments())
store = ObjectStore(settings.object_store_uri)
store.put_bytes("key", b"value")
print("store", store.get_bytes("key"))
data = b"the file"
file = MirrorFile(settings.dataset_mirrors[0] + "file", len(data), hashlib.sha256(data).hexdigest())
fetch_file(file, Path(sys.argv[1]))
print("mirror", Path(sys.argv[1]).read_bytes())
"""


@pytest.mark.slow
def test_no_service_on_loopback_is_asked_through_a_proxy(tmp_path: Path, prefect_api: str, proxy: HttpServer) -> None:
    mlflow = MlflowServer(tmp_path / "mlflow")
    with s3_server(tmp_path / "s3", "bucket") as store, serving({"file": b"the file"}) as mirror:
        try:
            mlflow.start()
            environment = {
                **os.environ,
                **store.environment,
                "PREFECT_API_URL": prefect_api,
                "MLFLOW_TRACKING_URI": mlflow.uri.replace("127.0.0.1", "localhost"),
                "OBJECT_STORE_URI": "s3://bucket",
                "MNIST_MIRRORS": mirror.address,
                "HTTP_PROXY": proxy.address,
                "https_proxy": proxy.address,
                "ALL_PROXY": "socks5://127.0.0.1:9",
                # Of an IPv6 network httpx makes no client at all.
                "NO_PROXY": "[::1],fd00::/8,intranet.example",
            }
            command = [sys.executable, "-c", ALL_SERVICES, str(tmp_path / "file")]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        finally:
            mlflow.kill()
    assert done.returncode == 0, done.stderr
    answers = ["Prefect None", "MLflow ['Default']", "store b'value'", "mirror b'the file'"]
    assert done.stdout.splitlines() == answers
    assert proxy.requests == []


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"HTTP_PROXY": "http://me:word@proxy:3128"}, "http://***@proxy:3128 (HTTP_PROXY)"),
        ({"all_proxy": "proxy:3128"}, "proxy:3128 (ALL_PROXY)"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, None),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "else,.example"}, None),
    ],
)
def test_a_proxy_is_named_without_its_password(
    given: dict[str, str], taken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    keep_loopback_direct(os.environ)
    assert proxy_for("http://host.example/x") == taken
    for loopback in ("http://127.0.0.1:5000", "http://localhost", "http://[::1]:1/", "http://a.localhost:1"):
        assert proxy_for(loopback) is None


@pytest.mark.parametrize(
    "useless", ["socks5://me:word@127.0.0.1:9", "socks://host:1", "http://:80", "http://host:port"]
)
def test_a_proxy_that_cannot_be_used_is_named_to_who_needs_it(
    useless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    monkeypatch.setenv("ALL_PROXY", useless)
    monkeypatch.setenv("PIPELINE_LEFT_OUT_ALL_PROXY", "")
    keep_loopback_direct(os.environ)
    httpx.Client().close()
    assert left_out_proxy("http://127.0.0.1:5000") is None
    with pytest.raises(MirrorUnreachable, match=r"ALL_PROXY.* cannot be used") as raised:
        fetch_file(MirrorFile("https://host.example/file", 1, "0" * 64), tmp_path / "file")
    assert "word" not in str(raised.value)
    with pytest.raises(SettingsError, match=r"MLFLOW_TRACKING_URI is http://host.example, .*\(ALL_PROXY\)"):
        load_settings({"MLFLOW_TRACKING_URI": "http://host.example"})
    # Where HTTP_PROXY and HTTPS_PROXY are there as well, it is not needed.
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    load_settings({"MLFLOW_TRACKING_URI": "http://host.example"})


def test_a_proxy_that_refuses_is_named(tmp_path: Path, proxy: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as dead:
        for address, said in ((dead, "refused the connection"), (proxy.address, "404")):
            monkeypatch.setenv("HTTP_PROXY", address)
            named = rf"through the proxy {address} \(HTTP_PROXY\)"
            with pytest.raises(Exception, match=named) as mirror:
                fetch_file(
                    MirrorFile("http://host.example/file", 1, hashlib.sha256(b"").hexdigest()), tmp_path / "file"
                )
            assert said in str(mirror.value)
            with pytest.raises(TrackerError, match=named):
                ExperimentTracker(load_settings({"MLFLOW_TRACKING_URI": "http://host.example"})).check_reachable()
