"""Predict the last column of a CSV from the others, and log to MLflow what comes of it."""

import argparse
import os
from pathlib import Path

import keras
import mlflow
from table import read_table


def main() -> None:
    """Read the table, train, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-folder", type=Path, required=True, help="with train.csv, a line of names at its top")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    args = parser.parse_args()

    inputs, targets = read_table(args.data_folder / "train.csv")
    normalization = keras.layers.Normalization()
    normalization.adapt(inputs)
    model = keras.Sequential(
        [
            keras.Input((inputs.shape[1],)),
            normalization,
            keras.layers.Dense(args.units, activation="relu"),
            # Of the size that targets have: what is learned is the rest.
            keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(float(targets.mean()))),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(args.learning_rate), loss="mse", metrics=["mae"])

    def log(epoch: int, logs: dict[str, float]) -> None:
        mlflow.log_metrics(logs, step=epoch + 1)

    # The run that MLFLOW_RUN_ID names, or a new one.
    with mlflow.start_run():
        model.fit(
            inputs,
            targets,
            validation_split=0.2,
            epochs=args.epochs,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=log)],
            verbose=2,
        )
    outputs = Path(os.environ.get("OUTPUTS_FOLDER", "outputs"))
    outputs.mkdir(parents=True, exist_ok=True)
    model.save(outputs / "model.keras")


if __name__ == "__main__":
    main()
