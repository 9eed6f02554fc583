"""What `from azureml.core import ...` finds, and `from azureml.core.run import ...` and its neighbours too."""

import sys

from .._data import Dataset, Datastore, Experiment, Workspace
from .._model import Model
from .._run import Run, _OfflineRun

__all__ = ["Dataset", "Datastore", "Experiment", "Model", "Run", "Workspace", "_OfflineRun"]

MODULES = ("dataset", "datastore", "experiment", "model", "run", "workspace")

for _module in MODULES:
    sys.modules[f"{__name__}.{_module}"] = sys.modules[__name__]
