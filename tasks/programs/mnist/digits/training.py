"""The epochs: the order of images, one program per epoch, checkpoints, and continuing from them.

A training is a function of the data set and the hyperparameters. Interrupted any number of times and continued in
other processes, it ends with the same weights, bit for bit, on the same kind of processor with the same number of
threads and the same libraries: the order of images follows from (seed, epoch), and a checkpoint holds all the rest.
"""

import platform
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from .checkpoint import Checkpoints, EpochMetrics, State
from .dataset import ImageDataset
from .errors import UsageError
from .hyperparameters import Hyperparameters
from .model import build_model, evaluate

EPOCHS_AHEAD = 2
"""How many epochs the training may be ahead of what is saved."""

COMPILE = platform.system() != "Darwin"
"""TensorFlow's macOS builds have no XLA; there the same loop runs uncompiled, about half as fast."""


@dataclass(frozen=True)
class TrainedModel:
    """The outcome of a training."""

    model: keras.Model
    """Compiled, with the weights of the best epoch."""
    best_epoch: int
    history: tuple[EpochMetrics, ...]

    @property
    def best_val_accuracy(self) -> float:
        """The highest validation accuracy, by which the epoch was chosen."""
        return self.history[self.best_epoch - 1].val_accuracy


def train(
    hyperparameters: Hyperparameters,
    dataset: ImageDataset,
    checkpoints: Checkpoints | None,
    on_epoch: Callable[[EpochMetrics], None],
    log_epoch: Callable[[EpochMetrics], None],
) -> TrainedModel:
    """Train for as many epochs as are missing, and return the model of the best one.

    `on_epoch` is called as soon as an epoch is over; `log_epoch` in another thread, once its checkpoint is written, and
    also for the epochs that were over when the program started. Raises `UsageError` if there is no full batch.
    """
    images, labels = dataset.train_images, dataset.train_labels
    steps = len(images) // hyperparameters.batch_size
    if not steps:
        raise UsageError(
            f"A batch of {hyperparameters.batch_size:,} is more than the {len(images):,} training images.\n"
            "Lower --batch-size."
        )
    model = build_model(hyperparameters)
    model.optimizer.build(model.trainable_variables)
    state = checkpoints.newest() if checkpoints else None
    if state:
        _restore(model, state)
    run_epoch = _epoch_program(model, tf.constant(images), tf.constant(labels))

    with _Recorder(checkpoints, log_epoch) as recorder:
        if state:
            recorder.log_again(state.history)
        for epoch in range(state.epoch + 1 if state else 1, hyperparameters.epochs + 1):
            started = time.perf_counter()
            order = image_order(hyperparameters.seed, epoch, len(images))
            batches = order[: steps * hyperparameters.batch_size].reshape(steps, hyperparameters.batch_size)
            model.reset_metrics()
            run_epoch(tf.constant(batches))
            average = model.get_metrics_result()
            validation = evaluate(model, dataset.validation_images, dataset.validation_labels)
            metrics = EpochMetrics(
                epoch=epoch,
                loss=float(average["loss"]),
                accuracy=float(average["accuracy"]),
                val_loss=validation.loss,
                val_accuracy=validation.accuracy,
                epoch_seconds=time.perf_counter() - started,
                finished_ms=time.time_ns() // 1_000_000,
            )
            state = _next_state(state, model, metrics)
            on_epoch(metrics)
            recorder.record(state)

    assert state is not None
    # A fresh model: the optimizer of the trained one belongs to the last epoch, not to the best.
    best = build_model(hyperparameters)
    best.set_weights(state.best_weights)
    # Keras warns at every loading of a saved model whose optimizer has no variables yet.
    best.optimizer.build(best.trainable_variables)
    return TrainedModel(best, state.best_epoch, state.history)


def image_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order in which an epoch sees the images: a permutation as int32, shape (images,).

    Where the batch size does not divide the number of images, an epoch leaves out the last ones of its order,
    fewer than a batch and others each time: a smaller batch would have to be compiled by itself (1.5 s).
    """
    return np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)


def _epoch_program(model: keras.Model, images: tf.Tensor, labels: tf.Tensor) -> Callable[[tf.Tensor], None]:
    """A function that takes one training step for each row of an int32 tensor (steps, batch size) of image numbers.

    All steps are one compiled program round Keras's own `train_step`. For the default network, seconds per epoch
    on two cores: 0.7 this way, 1.2 with a compiled step called from a loop in TensorFlow, 1.4 with `fit`,
    `steps_per_execution=1100` and `jit_compile=True` on a `tf.data` pipeline that gathers the batches.
    """

    # Without autograph, which leaves a file in the temporary folder for each function that it translates.
    @tf.function(jit_compile=COMPILE, autograph=False)  # type: ignore[untyped-decorator]
    def program(batches: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> None:
        def step(number: tf.Tensor) -> tf.Tensor:
            batch = batches[number]
            model.train_step((tf.gather(images, batch), tf.gather(labels, batch)))
            return number + 1

        tf.while_loop(lambda number: number < tf.shape(batches)[0], step, [0])

    return lambda batches: program(batches, images, labels)


def _next_state(before: State | None, model: keras.Model, metrics: EpochMetrics) -> State:
    weights = model.get_weights()
    state = State(
        weights=weights,
        optimizer=[variable.numpy() for variable in model.optimizer.variables],
        best_weights=before.best_weights if before else weights,
        history=(*(before.history if before else ()), metrics),
    )
    return State(weights, state.optimizer, weights, state.history) if state.best_epoch == metrics.epoch else state


def _restore(model: keras.Model, state: State) -> None:
    model.set_weights(state.weights)
    for variable, value in zip(model.optimizer.variables, state.optimizer, strict=True):
        variable.assign(value)


class _Recorder:
    """Saves and logs epochs one after the other in a thread of its own, while the next ones are trained.

    Its errors are raised in the thread that trains, when that is `EPOCHS_AHEAD` epochs further, or at the end.
    """

    def __init__(self, checkpoints: Checkpoints | None, log_epoch: Callable[[EpochMetrics], None]) -> None:
        self._checkpoints = checkpoints
        self._log_epoch = log_epoch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> "_Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._wait_until_pending(0)
        self._thread.shutdown(wait=kind is None, cancel_futures=True)

    def log_again(self, history: tuple[EpochMetrics, ...]) -> None:
        """Log epochs whose checkpoint is written already."""
        for metrics in history:
            self._pending.append(self._thread.submit(self._log_epoch, metrics))

    def record(self, state: State) -> None:
        """Save `state`, then log its last epoch; returns at once unless too much is pending."""
        self._pending.append(self._thread.submit(self._save_and_log, state))
        self._wait_until_pending(EPOCHS_AHEAD)

    def _wait_until_pending(self, count: int) -> None:
        while len(self._pending) > count:
            self._pending.pop(0).result()

    def _save_and_log(self, state: State) -> None:
        if self._checkpoints:
            self._checkpoints.save(state)
        self._log_epoch(state.history[-1])
