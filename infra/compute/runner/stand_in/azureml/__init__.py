"""Azure ML SDK v1 as far as training scripts use it, kept in MLflow: what they say goes to the runner by `link`."""

from __future__ import annotations

import typing

link: typing.Any = None
"""What `launcher/azureml_link.py` sets before anything else of the package is imported."""
