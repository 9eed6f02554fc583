"""Predict the rows of a file or folder with a registered model, without a server.

python -m flows.predict --model-name fashion --data photos/ --output predictions.csv
python -m flows.predict --data t10k-images-idx3-ubyte.gz --output predictions.csv --probabilities

The data is a .npy, .npz, .csv or IDX file, or a folder of images, as the model takes them: pixels are not scaled. Each
line of the output names its item. Exit status: 0 done, 1 refused or failed, 2 wrong usage.
"""

import infra.process_environment
import infra.terminal

if __name__ == "__main__":
    infra.terminal.attach()


import argparse
import csv
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.plain_command import add_model_name, failed
from infra.background import in_background
from infra.errors import ArgumentError, PipelineError
from infra.scratch import temporary_folder
from infra.service.contract import BadRequest, check_finite, to_array
from infra.service.network import import_keras
from infra.service.served import Served
from infra.services import Services
from infra.settings import load_settings
from infra.tracker_process import TrackerProcess
from tasks.champion import CHAMPION
from tasks.prediction_rows import blocks
from tasks.served_version import bring

SECONDS_BETWEEN = 5.0
"""Two lines of progress."""


def predict(asked: argparse.Namespace) -> dict[str, Any]:
    """Write the predictions to the output file, which gets its name when it is whole; what was done."""
    if not asked.data.exists():
        raise ArgumentError(f"There is no {asked.data}.\nName a file or a folder with --data.")
    if not asked.output.parent.is_dir():
        raise ArgumentError(f"The output {asked.output} cannot be written: there is no folder {asked.output.parent}.")
    settings = load_settings()
    services = Services(settings, TrackerProcess(settings))
    in_background(import_keras)
    version = services.tracker.version_by_alias(asked.model_name, asked.alias)
    if version is None:
        raise ArgumentError(f"There is no {asked.alias} of {asked.model_name}.\nTrain one, or correct --model-name.")
    with temporary_folder(settings.scratch_folder) as folder:
        served, _ = bring(version, folder, asked.trust_code, services)
    incoming = asked.output.with_name(f".{asked.output.name}.incoming")
    try:
        rows = _write(served, asked, incoming)
        incoming.replace(asked.output)
    finally:
        incoming.unlink(missing_ok=True)
    return {"model": served.name, "model_version": served.version, "rows": rows, "output": str(asked.output)}


def _write(served: Served, asked: argparse.Namespace, output: Path) -> int:
    contract = served.network.contract
    if len(contract.inputs) > 1 or len(contract.outputs) > 1:
        raise ArgumentError(f"{served.name} has several inputs or outputs, which no file of rows has.")
    tensor, count, told = contract.inputs[0], 0, time.monotonic()
    with output.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        for names, rows in blocks(asked.data, tensor):
            try:
                outputs = served.network([to_array(rows, tensor)])
                check_finite(outputs)
            except BadRequest as error:
                raise ArgumentError(f"{asked.data}, from item {names[0]} on: {error.sentence}") from error
            shares = (
                outputs[0].reshape(len(names), -1) if asked.probabilities else outputs[0][:, :0].reshape(len(names), 0)
            )
            if not count:
                lines.writerow(["item", "prediction", *(f"output_{number}" for number in range(shares.shape[1]))])
            found = contract.scored(outputs, probabilities=False)
            lines.writerows(
                [name, one, *more] for name, one, more in zip(names, found.tolist(), shares.tolist(), strict=True)
            )
            count += len(names)
            if time.monotonic() > told + SECONDS_BETWEEN:
                told = time.monotonic()
                infra.terminal.say(f"{count:,} rows predicted\n")
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments ask for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.predict",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="what is to be predicted")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.csv", help="where the predictions go")
    add_model_name(parser)
    parser.add_argument("--alias", default=CHAMPION, metavar="ALIAS", help="default %(default)s")
    parser.add_argument("--probabilities", action="store_true", help="all that the model gives for a row, too")
    parser.add_argument("--trust-code", action="store_true", help="load a model that needs its program's own code")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    asked = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        done = predict(asked)
    except PipelineError as error:
        return failed(error, asked.debug)
    told = f"{done['rows']:,} rows predicted by version {done['model_version']} of {done['model']}: {done['output']}\n"
    sys.stdout.write(json.dumps(done) + "\n" if asked.json else told)
    return 0


if __name__ == "__main__":
    infra.terminal.run(main)
