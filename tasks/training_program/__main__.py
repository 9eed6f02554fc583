"""Trains the digit classifier: read, build, train, evaluate, log.

    python -m training_program train --data-folder URI [--run-id RUN] [--outputs FOLDER] [--epochs 20] ...
    python -m training_program predict --model FOLDER --data-folder URI
    python -m training_program score --model NAME=FOLDER [--model NAME=FOLDER ...] --data-folder URI
    python -m training_program devices
    python -m training_program --standby train

`train` needs nothing but the four files of a data set. With `--run-id` it writes to that MLflow run, at the address
in MLFLOW_TRACKING_URI, and leaves starting and ending the run to its caller. With `--checkpoint-uri` it can be killed
at any time and continues with the same command.

`--standby` imports what the command needs, prints `standing by` and waits for its arguments: one line of JSON on stdin,
`{"arguments": ["train", ...]}`. The process ends when its stdin does, so it never outlives its caller.

The last words, an answer in a line of JSON or the reason of a failure, come behind a line of the character 0x1E.
Exit status: 0, or one of those in `errors.py`; 143 after SIGTERM, 130 after Ctrl-C, both at once.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from . import environment

if __name__ == "__main__":
    # Ahead of NumPy's import, which reads it.
    environment.isolate()

from .dataset_files import BadDataset
from .errors import (
    EXIT_BAD_DATASET,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    LAST_WORDS,
    NoGpu,
    ProgramError,
    UsageError,
)
from .hyperparameters import VALIDATION_IMAGES, Hyperparameters

STANDING_BY = "standing by"

CPU_THREADS = 1
"""A network of this size gains little from more: on two idle cores an epoch takes 0.84 s with one thread and 0.75 with
two, but up to 1.9 as soon as anything else wants a core. One also makes the weights independent of how many there are.
"""


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit status, having said on stderr what went wrong."""
    debug = "--debug" in arguments
    try:
        options = _parser().parse_args(arguments)
        if options.standby:
            import_ahead(options.standby)
            request = _wait_for_request()
            return main([*request, *(["--debug"] if debug else [])]) if request else 0
        if options.command is None:
            raise UsageError("Say what to do: train, predict, score or devices; --help explains them.")
        {"train": _train, "predict": _predict, "score": _score, "devices": _devices}[options.command](options)
    except Exception as error:
        if debug:
            traceback.print_exc()
        reason, status = _reason_and_status(error)
        sys.stdout.flush()  # Where both go the same way, the reason comes last.
        sys.stderr.write(f"{LAST_WORDS}\n{reason}\n")
        return status
    return 0


def _reason_and_status(error: Exception) -> tuple[str, int]:
    if isinstance(error, BadDataset):
        return f"The data set is not what it must be: {error}", EXIT_BAD_DATASET
    if isinstance(error, ProgramError):
        return str(error), error.exit_status
    return f"{type(error).__name__}: {error}\nThis is unexpected; --debug shows where it happened.", EXIT_FAILED


def _answer(facts: object) -> None:
    print(f"{LAST_WORDS}\n{json.dumps(facts)}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="training_program", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--standby", metavar="COMMAND", help="import what this command needs, then read the arguments from stdin"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command")
    train = commands.add_parser("train", help="train, evaluate and save the network")
    train.add_argument("--data-folder", required=True, help="folder or fsspec address of the four files")
    train.add_argument("--data-cache", type=Path, help="folder that keeps the files, by their SHA-256, for other jobs")
    train.add_argument("--dataset-name", default="mnist", help="what MLflow calls the data set")
    train.add_argument("--run-id", help="MLflow run to write to; without it nothing is logged")
    train.add_argument("--outputs", type=Path, default=Path("outputs"), help="folder for the model, plots and tables")
    train.add_argument("--checkpoint-uri", help="folder or fsspec address for checkpoints; without it there are none")
    train.add_argument("--lease-uri", help="folder or fsspec address of an object without which nothing is written")
    train.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    train.add_argument(
        "--cpu-threads",
        type=int,
        default=CPU_THREADS,
        help=f"threads that compute on the CPU; 0: one for each core, for wide layers. Default: {CPU_THREADS}",
    )
    for name, field in Hyperparameters.model_fields.items():
        train.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=f"{field.description} Default: {field.default}",
        )
    predict = commands.add_parser("predict", help="predict the test set with a saved model")
    predict.add_argument("--model", type=Path, required=True, help="folder of an MLflow model")
    predict.add_argument("--data-folder", required=True, help="folder or fsspec address of the four files")
    predict.add_argument("--images", type=int, default=30, help="how many predictions to show")
    score = commands.add_parser("score", help="score saved models on the same test set")
    score.add_argument(
        "--model",
        type=_named_folder,
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help="a name of your choice and the folder of an MLflow model; repeat it for each model",
    )
    score.add_argument("--data-folder", required=True, help="folder or fsspec address of the four files")
    devices = commands.add_parser("devices", help="print what Keras can compute on, as JSON")
    for command in (train, predict, score, devices):
        command.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return parser


def _train(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    hyperparameters = _hyperparameters(options)
    if options.run_id and not os.environ.get("MLFLOW_TRACKING_URI"):
        # MLflow would look in, and make, a database in the folder that one happens to be in.
        raise UsageError(
            f"--run-id {options.run_id} names a run of MLflow, and MLFLOW_TRACKING_URI does not say of which.\n"
            "Set it to the address at which the run was started, or leave --run-id out: then nothing is logged."
        )
    _import_tensorflow()
    import keras
    import numpy as np
    import tensorflow as tf

    from .checkpoint import Checkpoints, EpochMetrics
    from .dataset import load_dataset
    from .lease import Lease
    from .model import build_model, evaluate, weights_sha256
    from .report import test_metrics, write_report
    from .training import train

    confirm = Lease(options.lease_uri).check if options.lease_uri else lambda: None
    record = None
    if options.run_id:
        from .tracking import RunRecord

        record = RunRecord(options.run_id)

    device = _choose_device(options.accelerator, options.cpu_threads)
    versions = {"python": platform.python_version(), "keras": keras.__version__, "tensorflow": tf.__version__}
    print("  ".join(f"{name} {version}" for name, version in versions.items()) + f"  numpy {np.__version__}")
    print(f"device {device}")
    if environment.IGNORED:
        print(f"ignored in the environment, for such can change the weights: {', '.join(environment.IGNORED)}")

    dataset = load_dataset(options.data_folder, hyperparameters.validation_images, options.data_cache)
    print(f"data set {options.dataset_name} in {options.data_folder}  SHA-256 {dataset.sha256}")
    for purpose in ("train", "validation", "test"):
        images, labels = getattr(dataset, f"{purpose}_images"), getattr(dataset, f"{purpose}_labels")
        print(f"{purpose:<10} images {images.shape}  labels {labels.shape}")
    if record:
        facts = {f"{name}_version": version for name, version in versions.items()} | {
            "numpy_version": np.__version__,
            "device": device,
            "dataset_sha256": dataset.sha256,
            "test_set_sha256": dataset.test_set_sha256,
        }
        record.log_start(hyperparameters.model_dump(), facts)
        record.log_dataset(options.dataset_name, dataset.sha256, options.data_folder)
    build_model(hyperparameters).summary(print_fn=print, line_length=76)

    checkpoints = None
    if options.checkpoint_uri:
        identity = {"dataset_sha256": dataset.sha256, **hyperparameters.model_dump()}
        checkpoints = Checkpoints(options.checkpoint_uri, identity)

    def show(metrics: EpochMetrics) -> None:
        print(
            f"epoch {metrics.epoch}/{hyperparameters.epochs}  loss {metrics.loss:.4f}  accuracy {metrics.accuracy:.4f}"
            f"  val_loss {metrics.val_loss:.4f}  val_accuracy {metrics.val_accuracy:.4f}"
            f"  {metrics.epoch_seconds:.2f} s"
        )

    log_epoch = record.log_epoch if record else lambda metrics: None
    trained = train(hyperparameters, dataset, checkpoints, show, log_epoch, confirm)
    print(f"post-processing the model of epoch {trained.best_epoch}, the best on the validation images")
    test = evaluate(trained.model, dataset.test_images, dataset.test_labels)
    print(f"test_loss {test.loss:.4f}  test_accuracy {test.accuracy:.4f}")
    weights = weights_sha256(trained.model)
    write_report(options.outputs, dataset, trained, test)

    model_folder = options.outputs / "model"
    if record:
        confirm()
        results = test_metrics(test, dataset.test_labels)
        best = {"best_epoch": trained.best_epoch, "best_val_accuracy": trained.best_val_accuracy}
        record.log_result({**results, **best}, step=trained.best_epoch)
        model_id, model_sha256 = record.log_model(
            trained.model,
            model_folder,
            dataset.test_images[:1],
            hyperparameters.model_dump(),
            step=trained.best_epoch,
        )
        record.log_outputs(options.outputs)
        confirm()
        # Last, and at once: a run with these tags has everything.
        record.log_tags({"weights_sha256": weights, "model_id": model_id, "model_sha256": model_sha256})
        print(f"model saved as models:/{model_id} of run {options.run_id}")
    else:
        from .predict import MODEL_FILE

        path = model_folder / MODEL_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        trained.model.save(path)
        print(f"model saved in {path}")
    print(f"weights SHA-256 {weights}")
    print(f"done in {time.perf_counter() - started:.1f} s")


def _predict(options: argparse.Namespace) -> None:
    _import_tensorflow()
    from .predict import predict

    _choose_device("cpu", CPU_THREADS)  # As the training evaluated it, to the last digit.
    outcome = predict(options.model, options.data_folder)
    images = len(outcome.labels)
    print(f"model in {options.model}, test set in {options.data_folder}")
    print(outcome.comparison(options.images))
    wrong = int((outcome.predictions != outcome.labels).sum())
    print(f"{wrong:,} of {images:,} are wrong: accuracy {outcome.test_accuracy:.4f}")
    facts = {"test_accuracy": outcome.test_accuracy, "images": images, "weights_sha256": outcome.weights_sha256}
    _answer(facts)


def _named_folder(argument: str) -> tuple[str, Path]:
    name, _, folder = argument.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{argument!r} is not NAME=FOLDER")
    return name, Path(folder)


def _score(options: argparse.Namespace) -> None:
    _import_tensorflow()
    from .score import score

    _choose_device("cpu", CPU_THREADS)
    scores = score(dict(options.model), options.data_folder)
    for name, evaluation in scores.evaluations.items():
        print(f"{name:<12} test_loss {evaluation.loss:.4f}  test_accuracy {evaluation.accuracy:.4f}")
    _answer(scores.as_dict())


def _devices(options: argparse.Namespace) -> None:
    _import_tensorflow()
    import tensorflow as tf

    found = []
    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        found.append({"kind": device.device_type.lower(), "name": details.get("device_name", device.name)})
    _answer({"devices": found})


def _hyperparameters(options: argparse.Namespace) -> Hyperparameters:
    from pydantic import ValidationError

    told = {name: getattr(options, name) for name in Hyperparameters.model_fields}
    try:
        return Hyperparameters(**told | {"validation_images": options.validation_images or VALIDATION_IMAGES})
    except ValidationError as error:
        problems = (f"--{str(e['loc'][0]).replace('_', '-')} {e['input']}: {e['msg']}" for e in error.errors())
        raise UsageError("\n".join(problems)) from error


def _choose_device(accelerator: str, cpu_threads: int) -> str:
    """The name of the device that TensorFlow will use. Raises `NoGpu` if a GPU is asked for and there is none."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cpu_threads)
    gpus = tf.config.list_physical_devices("GPU")
    if accelerator == "gpu" and not gpus:
        raise NoGpu(
            f"A GPU was asked for (--accelerator gpu), and TensorFlow {tf.__version__} sees none on this machine.\n"
            "It needs NVIDIA's driver and the CUDA libraries (pip install 'tensorflow[and-cuda]'), and a GPU that\n"
            "CUDA_VISIBLE_DEVICES does not hide. TF_CPP_MIN_LOG_LEVEL=0 in the environment shows what it looked for."
        )
    if accelerator == "cpu":
        tf.config.set_visible_devices([], "GPU")
        gpus = []
    for gpu in gpus:
        # By default the first process takes all the memory of a GPU that others may share.
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        return f"cpu ({cpu_threads or os.cpu_count()} of {os.cpu_count()} cores)"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name))


def import_ahead(command: str) -> None:
    """Import all that a command will need: TensorFlow alone takes 4 to 9 s."""
    _import_tensorflow()
    importlib.import_module(f"{__package__}.predict")
    if command != "train":
        return
    for module in ("training", "report", "tracking"):
        importlib.import_module(f"{__package__}.{module}")
    # What these libraries import only when they need it.
    for module in ("mlflow.store.tracking.sqlalchemy_store", "mlflow.pyfunc", "matplotlib.backends.backend_agg"):
        importlib.import_module(module)


def _import_tensorflow() -> None:
    """Import TensorFlow without its noise; what the environment says about log levels stands."""
    quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    for name, value in {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MPLBACKEND": "Agg",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Seven times by default, with 120 s for each answer: `retry.py` is patient enough.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    # Keras imports scikit-learn where it is installed, for wrappers that nothing here uses: 1.8 of 9 s.
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    # Lines about the processor and about CUDA are written before any log level counts.
    with _nothing_on_stderr() if quiet else contextlib.nullcontext():
        importlib.import_module("tensorflow")


@contextlib.contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _wait_for_request() -> list[str] | None:
    """The arguments that the caller sends, or None if it ends before; from then on its end is this process's."""
    print(STANDING_BY)
    received = b""
    # Unbuffered: the thread below must be able to read on from the same place.
    while b"\n" not in received:
        chunk = os.read(0, 65_536)
        if not chunk:
            return None
        received += chunk
    try:
        arguments = [str(argument) for argument in json.loads(received)["arguments"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f'Expected one line of JSON, {{"arguments": [...]}}, on stdin: {error!r}') from error
    threading.Thread(target=_end_with_caller, daemon=True).start()
    return arguments


def _end_with_caller() -> None:
    while os.read(0, 65_536):
        pass
    os._exit(EXIT_TERMINATED)


def _end_at_signals() -> None:
    """End at SIGTERM and Ctrl-C without delay.

    A Python handler would wait for the running epoch, which is one call into TensorFlow. Nothing can be left half
    written that would be taken for whole: checkpoints and runs have marks that are written last.
    """
    statuses = {signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: EXIT_INTERRUPTED}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Written to at once; the handlers, which are called later, are only there for that.
    signal.set_wakeup_fd(writing)
    for number in statuses:
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        os._exit(statuses[signal.Signals(os.read(reading, 1)[0])])

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_at_signals()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # TensorFlow's threads and destructors take up to a second to wind down, and have nothing left to do.
    os._exit(status)
