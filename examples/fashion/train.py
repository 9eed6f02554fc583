"""Train a small convolutional network on images in folders, one per class."""

import argparse
import os
from pathlib import Path

import keras
from images import read_images


def make_model(classes: int, filters: int, activation: str, learning_rate: float) -> keras.Model:
    """The compiled network; it takes pixels from 0 to 255."""
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(filters, 3, activation=activation),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(2 * filters, 3, activation=activation),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def main() -> None:
    """Read the images, train, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data-folder", type=Path, required=True, help="with the folder train, a folder per class in it"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--activation", default="relu")
    args = parser.parse_args()

    split = {"validation_split": 0.2, "seed": 1, "subset": "both"}
    training, validation = read_images(args.data_folder / "train", **split)
    model = make_model(len(training.class_names), args.filters, args.activation, args.learning_rate)

    callbacks = []
    if folder := os.environ.get("CHECKPOINT_FOLDER"):
        # Kept when the training ends: whoever is stopped after the last epoch has nothing to compute again.
        callbacks.append(keras.callbacks.BackupAndRestore(folder, double_checkpoint=True, delete_checkpoint=False))
    # Not shuffled by Keras: the images come in another order in each epoch already.
    model.fit(training, validation_data=validation, epochs=args.epochs, callbacks=callbacks, shuffle=False, verbose=2)

    outputs = Path(os.environ.get("OUTPUTS_FOLDER", "outputs"))
    outputs.mkdir(parents=True, exist_ok=True)
    model.save(outputs / "model.keras")
    (outputs / "classes.txt").write_text("\n".join(training.class_names) + "\n")


if __name__ == "__main__":
    main()
