"""A person's own program on a real Ray cluster without a node, in an environment that no node has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from infra.object_store import ObjectStore
from tests import ray_cluster
from tests.pipeline import ROOT, Pipeline, descendants
from tests.wheels import Wheels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

EPOCHS = 60
FASHION = ROOT / "examples" / "fashion"


def add_program(folder: Path) -> list[str]:
    """A copy of the example whose epochs take two seconds, by a package that is in its own environment alone."""
    program = folder / "fashion"
    shutil.copytree(FASHION, program, ignore=shutil.ignore_patterns("__pycache__"))
    (program / "python_env.yaml").write_text("dependencies:\n  - patience==2.0\n")
    text = (program / "train.py").read_text()
    pause = "[keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: time.sleep(float(patience.VERSION)))]"
    changed = text.replace("callbacks = []", f"callbacks = {pause}; assert len(os.environ['WORD']) == 9")
    assert changed != text
    (program / "train.py").write_text("import time\nimport patience\n" + changed)
    subprocess.run([sys.executable, FASHION / "make_data.py", folder / "images", "--per-class=20"], check=True)
    return [f"--program={program}", f"--data={folder / 'images'}", f"--param=epochs={EPOCHS}", "--env=WORD"]


def test_it_outlives_a_kill_of_its_flow_and_the_loss_of_its_node(tmp_path: Path, prefect_api: str) -> None:
    wheels = Wheels(tmp_path)
    # Keras and TensorFlow are lent by the tests' environment, for to install them takes minutes.
    lent = [path for path in sys.path if path.endswith("site-packages")]
    wheels.add("patience", "2.0", more={"patience-lent.pth": "\n".join(lent)})
    asked = add_program(tmp_path)
    with ray_cluster.ray_cluster(tmp_path / "ray", nodes=wheels.environment) as (cluster, environment):
        told = {"PREFECT_API_URL": prefect_api, "WORD": "tell-none", **environment, **wheels.environment}
        place = Pipeline(tmp_path, told, module="flows.train")
        with pytest.MonkeyPatch.context() as patch:
            for name, value in told.items():
                patch.setenv(name, value)
            store = ObjectStore(environment["OBJECT_STORE_URI"])
            flags = (*asked, "--compute=ray", "--accelerator=cpu", "--price-per-hour=1", "--provision-timeout=300")

            def jobs() -> list[str]:
                found = [job["submission_id"] or "" for job in cluster.jobs()]
                return sorted(name for name in found if name.startswith("training-"))

            assert cluster.nodes() == []
            killed = place.start(*flags)
            try:
                place.wait_for_log(f"epoch 2/{EPOCHS}", killed, 400)
            finally:
                ray_cluster.kill_all(descendants(killed.pid))
                killed.communicate()
            # Built on the node, before the program stood by.
            log = place.log
            assert 0 < log.index("environment: the program's own") < log.index("- standing by")
            (job,) = jobs()
            order = store.get_bytes(f"compute/{job}/order.json") or b""
            assert b"run_id" in order
            assert b"tell-none" not in order
            shown = json.dumps(cluster.jobs())
            assert not [secret for secret in ("tell-none", told["AWS_SECRET_ACCESS_KEY"]) if secret in shown]

            again = place.start(*flags)
            try:
                place.wait_for_log(f"Found job {job}", again, 200)
                seen = max(number for number in range(EPOCHS) if f"epoch {number}/{EPOCHS}" in log)
                place.wait_for_log(f"epoch {seen + 3}/{EPOCHS}", again, 200)
                assert jobs() == [job], "it goes on with the job that runs"
                cluster.kill_node()
                stdout, _ = again.communicate(timeout=400)
            finally:
                if again.poll() is None:
                    ray_cluster.kill_all(descendants(again.pid))
            assert again.returncode == 0, place.log
            assert "restart 1 of 3, from the last checkpoint" in place.log
            assert f"epoch 1/{EPOCHS}" not in place.log
            outcome = json.loads(stdout)
            assert (outcome["model_name"], outcome["model_version"]) == ("fashion", 1)
            assert len(jobs()) == 2
            client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
            (experiment,) = client.search_experiments(filter_string="name = 'fashion'")
            (run,) = client.search_runs([experiment.experiment_id])
            assert run.info.status == "FINISHED"
            for metric in ("loss", "val_accuracy", "epoch_seconds"):
                steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
                assert steps == list(range(1, EPOCHS + 1)), metric
            assert run.data.tags["continues"] == "epoch"
            assert run.data.metrics["cost"] > 0
            assert (place.output_dir / "model.keras").exists() or list(place.output_dir.rglob("*.keras"))
            cluster.wait_for_no_job()
            assert store.sizes("compute") == store.sizes("leases") == {}
            environments = tmp_path / "ray" / "nodes" / ".cache" / "keras-at-scale" / "environments"
            (built,) = (path for path in environments.iterdir() if path.is_dir())
            assert (built / "bin" / "python").exists()
            assert os.environ["WORD"] not in str(client.get_run(run.info.run_id).data)
            cluster.wait_for_nodes(0)
            assert cluster.demand() == []
