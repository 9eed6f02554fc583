"""Scripts and notebooks that submit to Azure ML, and the commands that they come to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline import ROOT

TUTORIAL = """
%matplotlib inline
import azureml.core
from azureml.core import Dataset, Experiment, Workspace
from azureml.core.compute import AmlCompute, ComputeTarget
from azureml.core.compute_target import ComputeTargetException
from azureml.train.dnn import TensorFlow
from azureml.train.hyperdrive import *
from azureml.widgets import RunDetails
ws = Workspace.from_config()
exp = Experiment(workspace=ws, name="keras-mnist")
here = "http://yann.lecun.com/exdb/mnist/"
web_paths = [
    "http://yann.lecun.com/exdb/mnist/train-images-idx3-ubyte.gz",
    "http://yann.lecun.com/exdb/mnist/train-labels-idx1-ubyte.gz",
    "http://yann.lecun.com/exdb/mnist/t10k-images-idx3-ubyte.gz",
    "http://yann.lecun.com/exdb/mnist/t10k-labels-idx1-ubyte.gz",
]
dataset = Dataset.File.from_files(path=web_paths)
dataset = dataset.register(workspace=ws, name="mnist dataset", create_new_version=True)
try:
    compute_target = ComputeTarget(workspace=ws, name="gpucluster")
except ComputeTargetException:
    config = AmlCompute.provisioning_configuration(vm_size="STANDARD_NC6", max_nodes=4)
    compute_target = ComputeTarget.create(ws, "gpucluster", config)
script_folder = "./azureml-mnist"
data = Dataset.get_by_name(ws, name="mnist dataset")
script_params = {
    "--data-folder": data.as_named_input("mnist").as_mount(),
    "--batch-size": 50,
    "--first-layer-neurons": 300,
    "--second-layer-neurons": 100,
    "--learning-rate": 0.001,
}
est = TensorFlow(source_directory=script_folder, script_params=script_params, compute_target=compute_target,
                 pip_packages=["keras", "matplotlib"], entry_script="keras_mnist.py", use_gpu=True)
run = exp.submit(est)
RunDetails(run).show()
run.wait_for_completion(show_output=True)
model = run.register_model(model_name="keras-dnn-mnist", model_path="outputs/model")
ps = RandomParameterSampling({
    "--batch-size": choice(25, 50, 100),
    "--first-layer-neurons": choice(10, 50, 200, 300, 500),
    "--learning-rate": loguniform(-6, -1),
    "--dropout": normal(0, 1),
})
policy = BanditPolicy(evaluation_interval=2, slack_factor=0.1)
hdc = HyperDriveConfig(estimator=est, hyperparameter_sampling=ps, policy=policy, primary_metric_name="Accuracy",
                       primary_metric_goal=PrimaryMetricGoal.MAXIMIZE, max_total_runs=20, max_concurrent_runs=4)
hdr = exp.submit(config=hdc)
from azureml.core.webservice import AciWebservice
service = Model.deploy(ws, "keras-mnist-svc", [model], config, AciWebservice.deploy_configuration(cpu_cores=1))
"""

LATER = """
from azureml.core import ScriptRunConfig
import os
ds = ws.get_default_datastore()
ds.upload(src_dir="./data", target_path="flowers")
folder = os.path.join("src", "train")
src = ScriptRunConfig(folder, "train.py", arguments=["--data", ds.path("flowers").as_mount(), "--n", 3, "--x", made()],
                      compute_target=target, environment=env)
run = Experiment(ws, "flowers").submit(src)
"""


def translated(path: Path, status: int = 0) -> tuple[list[str], list[str]]:
    """The lines of commands, and those of what was left."""
    words = [sys.executable, "-m", "flows.from_azureml", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=path.parent, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == status, done.stderr
    return done.stdout.replace(sys.executable, "python").splitlines(), done.stderr.splitlines()


def test_the_tutorials_notebook_comes_to_commands(tmp_path: Path) -> None:
    cells = [{"cell_type": "markdown", "source": ["# words"]}]
    cells += [{"cell_type": "code", "source": TUTORIAL.splitlines(keepends=True)}]
    (tmp_path / "tutorial.ipynb").write_text(json.dumps({"cells": cells}))
    commands, left = translated(tmp_path / "tutorial.ipynb")
    assert commands[0] == (
        "python -m flows.train --program azureml-mnist --entry keras_mnist.py --experiment keras-mnist "
        "--model-name keras-dnn-mnist --data mnist -- --data-folder {data_folder} --batch-size 50 "
        "--first-layer-neurons 300 --second-layer-neurons 100 --learning-rate 0.001"
    )
    assert any("dropout = normal(0, 1): it is not searched" in line for line in left)
    searches = (ROOT / "flows" / "search.py").exists()
    assert searches == any(command.startswith("python -m flows.search") for command in commands)
    assert searches != any("this search" in line for line in left)
    serves = (ROOT / "flows" / "serve.py").exists()
    assert serves == ("python -m flows.serve --model-name keras-dnn-mnist" in commands)
    if searches:
        assert commands[1] == "cat > azureml-mnist/MLproject <<'END'"
        assert '  learning_rate: {"loguniform": [0.0024787521766663585, 0.36787944117144233]}' in commands
        last = next(command for command in commands if command.startswith("python -m flows.search"))
        assert last.endswith(
            "--sampler random --trials 20 --at-once 4 --stop bandit --evaluation-interval 2 --slack-factor 0.1"
        )


def test_what_is_known_only_when_it_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "submit.py").write_text(LATER)
    commands, left = translated(tmp_path / "submit.py")
    assert commands == [
        "python -m flows.train --program src/train --entry train.py --experiment flowers --data data -- "
        "--data {data_folder} --n 3 --x VALUE"
    ]
    assert left == ["# not translated: line 7: argument made(): VALUE stands for it"]


@pytest.mark.parametrize(("text", "status", "said"), [("x = 1", 1, "submits no script"), ("x = ", 2, "cannot be read")])
def test_a_file_without_a_submission_is_told(text: str, status: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "submit.py").write_text(text)
    commands, left = translated(tmp_path / "submit.py", status)
    assert commands == []
    assert said in left[0]
