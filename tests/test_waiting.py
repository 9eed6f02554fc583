"""Services that hang instead of refusing: every call has an end, the wait is told, and a signal ends it at once."""

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra import remote_store, waiting
from infra.compute.runner import patience, storage
from infra.compute.runner.output import wait_until_written
from infra.errors import ObjectStoreUnreachable
from infra.object_store import ObjectStore
from tests.mlflow_server import MlflowServer
from tests.pipeline import QUICK, Pipeline, descendants, still_running
from tests.s3_server import s3_server
from tests.silent_server import silent_server

pytestmark = pytest.mark.slow

SECONDS_TO_END = 6
"""It takes 3 on an idle machine; whoever waited for the call would take a minute."""


def test_a_store_that_hangs_is_told_of_and_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "SECONDS_BEFORE", 0.2)
    for config in (remote_store._S3_CONFIG, storage._S3["config_kwargs"]):
        assert config["retries"]["total_max_attempts"] * config["read_timeout"] <= 60
        monkeypatch.setitem(config, "read_timeout", 1)
    with ExitStack() as stack:
        address = stack.enter_context(silent_server())
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ObjectStoreUnreachable, match="it does not answer"):
            ObjectStore("s3://bucket/prefix").get_bytes("some/key")
        assert "No answer from the store s3://bucket/prefix for" in caplog.text
        assert "to read some/key; still waiting" in caplog.text
        filesystem, path = storage.open_store("s3://bucket/prefix")
        started = time.monotonic()
        with pytest.raises(OSError, match="Read timeout"):
            filesystem.cat_file(path)
        assert time.monotonic() - started < 15


def test_what_goes_on_is_no_wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(waiting, "SECONDS_BEFORE", 0.3)
    with waiting.told_when_slow("the store", "send files to it") as wait:
        for _ in range(10):
            time.sleep(0.1)
            wait.goes_on()
            wait.tell_if_slow()
        assert caplog.text == ""
        time.sleep(0.4)
        wait.tell_if_slow()
    assert "to send files to it" in caplog.text


def test_the_runner_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(patience, "SECONDS_BEFORE_TOLD", 0.1)
    patience.with_patience(lambda: time.sleep(0.3), "log the model in MLflow")
    wait_until_written()
    assert capfd.readouterr().out == "no answer for 0.1 s, to log the model in MLflow; still waiting\n"


def test_an_mlflow_that_hangs_is_given_up_and_ctrl_c_does_not_wait_for_it(
    fresh_pipeline: Pipeline, tmp_path: Path
) -> None:
    server = MlflowServer(tmp_path / "mlflow")
    server.start()
    try:
        fresh_pipeline.environment["MLFLOW_TRACKING_URI"] = server.uri
        process = fresh_pipeline.start(*QUICK, "--epochs=1000")
        fresh_pipeline.wait_for_log("epoch 3/1000", process)
        started = descendants(process.pid)
        server.stop()
        fresh_pipeline.wait_for_log("no answer for 10 s, to log epoch", process, limit_seconds=30)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.communicate(timeout=20)
        assert time.monotonic() - began < SECONDS_TO_END
        assert process.returncode == 130
        assert still_running(started) == []
        assert "could not be closed, the next attempt does it" in fresh_pipeline.log
    finally:
        server.kill()


def test_a_store_that_hangs_before_the_upload_is_told_of_and_ctrl_c_does_not_wait_for_it(
    fresh_pipeline: Pipeline, tmp_path: Path
) -> None:
    with s3_server(tmp_path / "s3", "bucket") as server:
        fresh_pipeline.environment |= {**server.environment, "OBJECT_STORE_URI": "s3://bucket/prefix"}
        server.stop()
        process = fresh_pipeline.start(*QUICK)
        fresh_pipeline.wait_for_log("No answer from the store s3://bucket/prefix for 1", process)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.communicate(timeout=20)
        assert time.monotonic() - began < SECONDS_TO_END
        assert process.returncode == 130
