"""The service as it runs: a real registry, versions that come and go, MLflow that dies, signals."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline import ROOT, wait_until
from tests.registry import MODEL
from tests.served_models import IMAGES
from tests.service_case import ANSWERS, SIGNATURE, TRUNCATED, ServiceCase, running_case
from tests.service_load import Load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceCase]:
    with running_case(tmp_path_factory.mktemp("service")) as running:
        yield running


def test_it_answers_what_the_model_answers_in_python_whatever_the_batch_and_the_client(case: ServiceCase) -> None:
    shares = case.models[0].shares
    unit = (IMAGES.reshape(20, -1) / 255).tolist()
    answer = case.service.post("/score", json={"data": unit})
    assert answer.json() == case.models[0].digits
    assert answer.headers["X-Model-Version"] == "1"
    assert answer.headers["X-Weights-SHA256"] == case.models[0].weights_sha256
    for rows in (1, 7, 20):
        found = case.service.post("/score?probabilities=true", json={"data": unit[:rows]}).json()
        np.testing.assert_allclose(found, shares[:rows], rtol=1e-5, atol=1e-6)
        found = case.service.post("/invocations", json={"instances": IMAGES[:rows].tolist()}).json()["predictions"]
        np.testing.assert_allclose(found, shares[:rows], rtol=1e-5, atol=1e-6)
    tensor = {"name": "image", "shape": [20, 28, 28], "datatype": "UINT8", "data": IMAGES.reshape(-1).tolist()}
    (output,) = case.service.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor]}).json()["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), shares, rtol=1e-5, atol=1e-6)


def test_the_curl_line_works_as_it_stands_and_shows_no_key(case: ServiceCase) -> None:
    line = next(line for line in case.service.said.splitlines() if line.strip().startswith("curl"))
    assert case.service.key not in case.service.said
    done = subprocess.run(["bash", "-c", f"{line} --silent"], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) == 1
    assert " ".join(shlex.split(line)[:2]) == "curl -H"


def test_status_tells_and_a_second_service_of_the_model_is_refused(case: ServiceCase) -> None:
    said = json.loads(case.service.command("status", "--json").stdout)
    assert (said["model_version"], said["ready"], said["address"]) == (1, True, case.service.address)
    again = case.service.command("--port=0")
    assert again.returncode == 2
    assert "is served already" in again.stderr
    assert "Traceback" not in again.stderr


def test_bad_versions_stay_out_with_the_reason_and_a_good_one_takes_over_without_a_failed_call(
    case: ServiceCase,
) -> None:
    load = Load(case.service.address, case.service.key, case.digits)
    with load.of(4):
        for number, reason in ((SIGNATURE, "signature"), (ANSWERS, "input example"), (TRUNCATED, "are not those that")):
            case.promote(number)
            wait_until(partial(case.keeps_out, number), 90, f"version {number} to be refused")
            assert reason in case.refusal(number)
            assert f"version {number} stays out" in case.page
        case.promote(2)
        case.service.wait_for("version 2", version=2, refused=[])
        case.promote(1)
        case.service.wait_for("version 1", version=1)
    assert load.failed == []
    assert set(load.versions) == {1, 2}
    assert case.models[0].digits != case.models[1].digits


def test_mlflow_away_it_serves_on_also_after_a_restart_and_ends_in_order_under_load(case: ServiceCase) -> None:
    case.mlflow.kill()
    case.service.look()
    wait_until(lambda: bool(case.service.ready()["registry_away"]), 90, "the service to miss MLflow")
    assert "MLflow is away" in case.page
    assert case.service.post("/score", json={"data": [[0] * 784]}).status_code == 200
    # A file that changed while nobody looked is not served.
    assert stopped_under_load(case) == 0
    case.service.start()
    said = case.service.ready()
    assert (said["version"], bool(said["registry_away"])) == (1, True)
    answer = case.service.post("/score", json={"data": (IMAGES.reshape(20, -1) / 255).tolist()})
    assert answer.json() == case.models[0].digits
    stopped = case.service.command("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert case.service.process.wait(5) == 0
    assert case.service.command("status").returncode == 2
    assert "Version 1" in case.service.command("logs").stdout
    (kept,) = (case.service.home / "service" / MODEL / "models").iterdir()
    with (kept / "data" / "model.keras").open("ab") as file:
        file.write(b"more")
    again = case.service.command("--port=0")
    assert again.returncode == 1
    assert "MLflow" in again.stderr


def stopped_under_load(case: ServiceCase) -> int:
    load = Load(case.service.address, case.service.key, case.digits)
    with load.of(4):
        wait_until(lambda: sum(load.versions.values()) > 50, 30, "calls")
        status = case.service.stop()
    assert load.failed == []
    return status


def test_without_a_champion_it_refuses_or_waits(tmp_path: Path) -> None:
    environment = {**os.environ, "PIPELINE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "flows.serve", "--port=0"]
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "There is no champion of keras-dnn-mnist" in refused.stderr
    with (tmp_path / "said.txt").open("w") as log:
        waiting = subprocess.Popen([*command, "--wait"], cwd=ROOT, env=environment, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: "Waiting" in (tmp_path / "said.txt").read_text(), 60, "it to wait")
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(10) == 128 + signal.SIGTERM
    finally:
        waiting.kill()
