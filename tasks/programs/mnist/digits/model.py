"""The network of the tutorial, and what is asked of it after training."""

import hashlib
from dataclasses import dataclass

import keras
import numpy as np

from .dataset_files import CLASSES, IMAGE_SHAPE
from .hyperparameters import Hyperparameters

IMAGES_AT_ONCE = 5_000
"""Images in one forward pass when nothing is learned: bounds the memory, the results hardly depend on it."""


def build_model(hyperparameters: Hyperparameters) -> keras.Model:
    """The compiled network: uint8 images (n, 28, 28) from 0 to 255 in, float32 probabilities (n, 10) out.

    Scaling and flattening are layers of it, so that whoever loads it feeds raw images. The initial weights
    follow from the seed alone. The layers have fixed names because a digest of the weights may contain them.
    """
    seeds = [int(seed) for seed in np.random.SeedSequence(hyperparameters.seed).generate_state(3) // 2]
    model = keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE, dtype="uint8", name="image"),
            keras.layers.Rescaling(1 / 255, name="scale"),
            keras.layers.Flatten(name="flatten"),
            _dense(hyperparameters.first_layer_neurons, "relu", "first_layer", seeds[0]),
            _dense(hyperparameters.second_layer_neurons, "relu", "second_layer", seeds[1]),
            _dense(CLASSES, "softmax", "digit", seeds[2]),
        ],
        name="digits",
    )
    model.compile(
        optimizer=keras.optimizers.RMSprop(learning_rate=hyperparameters.learning_rate),
        # Categorical cross-entropy; "sparse" only says that labels come as digits instead of one-hot rows.
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def _dense(neurons: int, activation: str, name: str, seed: int) -> keras.layers.Layer:
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Dense(neurons, activation=activation, kernel_initializer=initializer, name=name)


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over the name, shape, dtype and bytes of each weight, in the model's order: what identifies a model."""
    digest = hashlib.sha256()
    for layer in model.layers:
        for weight in layer.weights:
            array = weight.numpy()
            digest.update(f"{layer.name}/{weight.name} {array.shape} {array.dtype.str}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a set of images."""

    loss: float
    """Mean categorical cross-entropy, in nats."""
    accuracy: float
    """Share of images whose digit is right, from 0 to 1."""
    probabilities: np.ndarray
    """float32, shape (n, 10)."""

    @property
    def predictions(self) -> np.ndarray:
        """The most probable digit of each image, shape (n,)."""
        digits: np.ndarray = self.probabilities.argmax(axis=1)
        return digits


def evaluate(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Loss and accuracy of `model` on uint8 `images` (n, 28, 28) with their `labels` (n,).

    Called on the model directly: `model.evaluate` takes 80 to 100 ms for 5,000 images on two cores, this 25.
    """
    losses, probabilities = [], []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        output = model(images[part], training=False)
        losses.append(np.asarray(keras.losses.sparse_categorical_crossentropy(labels[part], output)))
        probabilities.append(np.asarray(output))
    together = np.concatenate(probabilities)
    return Evaluation(
        loss=float(np.mean(np.concatenate(losses), dtype=np.float64)),
        accuracy=float(np.mean(together.argmax(axis=1) == labels)),
        probabilities=together,
    )
