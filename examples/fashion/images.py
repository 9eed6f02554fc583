"""The images as training and scoring read them: in grey, 28 x 28 pixels, labelled by the name of their folder."""

from pathlib import Path

import keras


def read_images(folder: Path, **options):
    """A tf.data.Dataset of batches; `options` are those of keras.utils.image_dataset_from_directory."""
    return keras.utils.image_dataset_from_directory(
        folder, color_mode="grayscale", image_size=(28, 28), verbose=False, **options
    )
