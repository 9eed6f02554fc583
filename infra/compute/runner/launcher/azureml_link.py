"""Puts the stand-in for Azure ML's SDK on the path of a program that imports it, and ties it to the runner.

What a script logs by one name again and again is a curve, whose steps are counted. A continued `fit` begins with a
later epoch, so the counts are kept with its checkpoint: what lies between two checkpoints is counted the same again.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any


class Link:
    """What the stand-in knows of the run, once it is installed: see `AzuremlRun.facts`."""

    def __init__(self, runner: Any) -> None:
        self.tell, self.curves = runner.tell, runner.curves
        self.epochs = 0
        """Of the fits that have ended: the last step that the pipeline has logged."""
        self.state: dict[str, Any] = {}
        self._found: dict[str, Any] | None = None

    def keep(self, record: dict[str, Any]) -> None:
        """Take down with a fit what the script has logged by now."""
        record["kept"] = copy.deepcopy(self.state)

    def find(self, record: dict[str, Any]) -> None:
        """A fit goes on, or is over, that has this record: what was kept with it holds from `resume` on."""
        self._found = copy.deepcopy(record.get("kept"))

    def resume(self) -> None:
        """Its next epoch begins, or there is none: what the script logs as a fit begins, it has logged again."""
        self.state.update(self._found or {})
        self._found = None

    def end(self, record: dict[str, Any]) -> None:
        """A fit has ended, and the runner has logged each of its epochs."""
        self.resume()
        self.epochs += len(record["epochs"])
        for epoch, metrics in record["epochs"]:
            for name, value in metrics.items():
                self.curves.setdefault(name, set()).add((epoch + 1, value))


def install(facts: dict[str, Any], link: Link, when: Callable[..., None], warn: Callable[[str], None]) -> None:
    """Let `import azureml` find the stand-in where the SDK itself is not installed."""
    link.__dict__.update(facts, warn=warn)

    def tie(module: Any) -> None:
        if str(getattr(module, "__file__", "")).startswith(facts["stand_in"]):
            module.link = link
            warn("azureml is a stand-in that writes to the pipeline's run in MLflow: docs/from-azure-ml.md")

    when("azureml", tie)
    # Last: the SDK itself, or a folder of the program's, comes before it.
    sys.path.append(facts["stand_in"])
