"""Trains the classifier: read, build, train, evaluate, save.

    python -m digits.train --data-folder FOLDER [--epochs 20] ...

With CHECKPOINT_FOLDER in the environment it can be killed at any time and continues with the same command; with
MLFLOW_RUN_ID it writes to that run; with TRIAL it ends after the last epoch, and without it goes on to the test.
Exit status: 0, or one of those in `errors.py`.
"""

import argparse
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .errors import ProgramError, UsageError
from .hyperparameters import VALIDATION_IMAGES, Hyperparameters


def parser() -> argparse.ArgumentParser:
    """The command line: a flag for each hyperparameter."""
    found = argparse.ArgumentParser(prog="python -m digits.train", description=(__doc__ or "").partition("\n")[0])
    found.add_argument("--data-folder", type=Path, required=True, help="folder of the four files")
    for name, field in Hyperparameters.model_fields.items():
        found.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=f"{field.description} Default: {field.default}",
        )
    return found


def hyperparameters(options: argparse.Namespace) -> Hyperparameters:
    """Those that were told; raises `UsageError` for what is out of bounds."""
    from pydantic import ValidationError

    told = {name: getattr(options, name) for name in Hyperparameters.model_fields}
    try:
        return Hyperparameters(**told | {"validation_images": options.validation_images or VALIDATION_IMAGES})
    except ValidationError as error:
        problems = (f"--{str(e['loc'][0]).replace('_', '-')} {e['input']}: {e['msg']}" for e in error.errors())
        raise UsageError("\n".join(problems)) from error


def train(options: argparse.Namespace) -> None:
    """Do what the command line says."""
    asked = hyperparameters(options)
    import keras
    import numpy as np
    import tensorflow as tf

    from . import training
    from .checkpoint import Checkpoints, EpochMetrics
    from .dataset import load_dataset
    from .device import choose_device
    from .model import build_model, evaluate, weights_sha256
    from .report import test_metrics, write_report

    record = None
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        from .tracking import RunRecord

        record = RunRecord(run_id)
    outputs = Path(os.environ.get("OUTPUTS_FOLDER", "outputs"))

    device = choose_device(os.environ.get("ACCELERATOR", "auto"))
    versions = {"python": platform.python_version(), "keras": keras.__version__, "tensorflow": tf.__version__}
    print("  ".join(f"{name} {version}" for name, version in versions.items()) + f"  numpy {np.__version__}")
    print(f"device {device}")
    dataset = load_dataset(options.data_folder, asked.validation_images)
    for purpose in ("train", "validation", "test"):
        images, labels = getattr(dataset, f"{purpose}_images"), getattr(dataset, f"{purpose}_labels")
        print(f"{purpose:<10} images {images.shape}  labels {labels.shape}")
    if record:
        record.log_tags({"device": device, "test_set_sha256": dataset.test_set_sha256})
    build_model(asked).summary(print_fn=print, line_length=76)

    checkpoints = None
    if folder := os.environ.get("CHECKPOINT_FOLDER"):
        checkpoints = Checkpoints(Path(folder), {"test_set_sha256": dataset.test_set_sha256, **asked.model_dump()})

    def show(metrics: EpochMetrics) -> None:
        print(
            f"epoch {metrics.epoch}/{asked.epochs}  loss {metrics.loss:.4f}  accuracy {metrics.accuracy:.4f}"
            f"  val_loss {metrics.val_loss:.4f}  val_accuracy {metrics.val_accuracy:.4f}"
            f"  {metrics.epoch_seconds:.2f} s",
            flush=True,
        )

    trained = training.train(asked, dataset, checkpoints, show, record.log_epoch if record else lambda metrics: None)
    if "TRIAL" in os.environ:
        if record:
            record.log_tags({"weights_sha256": weights_sha256(trained.model)})
        return
    print(f"post-processing the model of epoch {trained.best_epoch}, the best on the validation images", flush=True)
    test = evaluate(trained.model, dataset.test_images, dataset.test_labels)
    print(f"test_loss {test.loss:.4f}  test_accuracy {test.accuracy:.4f}")
    write_report(outputs, dataset, trained, test)
    (outputs / "model").mkdir(exist_ok=True)
    trained.model.save(outputs / "model" / "model.keras")
    if record:
        best = {"best_epoch": trained.best_epoch, "best_val_accuracy": trained.best_val_accuracy}
        record.log_result({**test_metrics(test, dataset.test_labels), **best}, step=trained.best_epoch)


def main(arguments: Sequence[str]) -> int:
    """Train; returns the exit status, having said on stderr what went wrong."""
    try:
        train(parser().parse_args(arguments))
    except Exception as error:
        sys.stdout.flush()  # Where both go the same way, the reason comes last.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, ProgramError) else f" ({Path(place.filename).name}, line {place.lineno})"
        sys.stderr.write(f"{type(error).__name__}: {error}{where}\n")
        return error.exit_status if isinstance(error, ProgramError) else 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # TensorFlow's threads and destructors take up to a second to wind down, and have nothing left to do.
    os._exit(status)
