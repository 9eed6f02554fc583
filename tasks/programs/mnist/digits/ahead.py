"""Imports what takes its time to import, before there is anything to train: nothing here looks at arguments or data."""

import importlib
import os
import sys

# Keras and MLflow import these where they are installed, for what nothing here uses: seconds.
for _name in ("pandas", "scipy", "sklearn"):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]

for _name in ("device", "report", "tracking", "training"):
    importlib.import_module(f".{_name}", __package__)

# What these libraries import only when they need it.
importlib.import_module("matplotlib.backends.backend_agg")
if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
