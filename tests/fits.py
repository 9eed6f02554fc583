"""A script as people write them: many fits, each with something that has gone wrong elsewhere. Prints each History.

Nothing of it is random, so that a continued run can be compared with an undisturbed one number by number.
"""

# mypy: ignore-errors
# A script, not a module of ours.

import json
import os
import sys
import threading
from pathlib import Path

import keras
import numpy as np

images = np.linspace(-1, 1, 240, dtype="float32").reshape(60, 4)
labels = (images.sum(axis=1) > 0).astype("float32")


def say(name, history, model):
    """The History, and what has become of the model."""
    shown = {key: [round(value, 6) for value in values] for key, values in history.history.items()}
    weights = sum(float(abs(each).sum()) for each in model.get_weights())
    print(name, json.dumps([history.epoch, shown]), round(weights, 5))  # noqa: T201


def compiled(model, optimizer="adam", eagerly=True):
    # Without a graph where it does not matter: that takes longer to make than all these epochs.
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"], run_eagerly=eagerly)
    return model


def layers(units=3):
    keras.utils.set_random_seed(units)
    return [keras.layers.Dense(units, activation="relu"), keras.layers.Dense(1, activation="sigmoid")]


class OfOnesOwn(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = layers()

    def call(self, inputs):
        return self.parts[1](self.parts[0](inputs["images"]))


class Pair(keras.Model):
    """Has no `call`: Keras never takes it for built. As a GAN, it has two optimizers beside its own."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(1)
        self.part = compiled(keras.Sequential([keras.Input((4,)), *layers()]))
        self.second = keras.optimizers.Adam(0.1)

    def train_step(self, data):
        kernels = self.part.layers[-1].trainable_variables
        self.second.apply([kernel + 0.5 for kernel in kernels], kernels)
        self.part.reset_metrics()  # Keras has it for the layer's own, and counts on over the epochs.
        return self.part.train_step(data)


usual = {"shuffle": False, "verbose": 0, "batch_size": 32}

# 1: no input shape before the first batch; 2: stops early, and takes its best weights.
folds = compiled(keras.Sequential(layers()), eagerly=False)
say("fold 1", folds.fit(images, labels, epochs=3, validation_split=0.2, **usual), folds)
stopping = keras.callbacks.EarlyStopping("loss", min_delta=10, patience=1, restore_best_weights=True)
folds = compiled(keras.Sequential(layers(5)), keras.optimizers.SGD(0.01, use_ema=True, momentum=0.9))
say("fold 2", folds.fit(images, labels, epochs=9, callbacks=[stopping], **usual), folds)
# 3, 4: two stages of fine tuning.
tuned = compiled(keras.Sequential([keras.Input((4,)), *layers()]))
tuned.layers[0].trainable = False
say("stage 1", compiled(tuned).fit(images, labels, 32, 2, 0, shuffle=False), tuned)
tuned.layers[0].trainable = True
rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 / (1 + epoch))
say(
    "stage 2",
    compiled(tuned, "sgd").fit(
        images,
        labels,
        epochs=5,
        initial_epoch=2,
        validation_data=(images, labels),
        validation_freq=2,
        callbacks=rates,
        **usual,
    ),
    tuned,
)
# 5 to 8: one epoch at a time, looked at in between.
looped = compiled(keras.Sequential(layers()))
for number in range(4):
    say(f"loop {number}", looped.fit(images, labels, **usual), looped)
# 9, 10: inputs by name; a model of models; 11: another fit inside.
named = compiled(OfOnesOwn(), eagerly=False)
say("named", named.fit({"images": images}, labels, epochs=3, **usual), named)
pair = Pair()
pair.compile(run_eagerly=True)
say("pair", pair.fit(images, labels, epochs=3, **usual), pair)
inner = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: folds.fit(images, labels, verbose=0))
outer = compiled(keras.Sequential(layers()))
say("outer", outer.fit(images, labels, epochs=3, callbacks=[[inner], keras.callbacks.History()], **usual), outer)
# 12: in a thread.
results = []
thread = threading.Thread(target=lambda: results.append(looped.fit(images, labels, epochs=2, **usual)))
thread.start()
thread.join()
say("thread", results[0], looped)
# 13: Keras's own backup. 14: wrong arguments are Keras's to refuse.
own = compiled(keras.Sequential([keras.Input((4,)), *layers()]))
backup = keras.callbacks.BackupAndRestore(Path(os.environ.get("OWN", "."), "own"))
say("own", own.fit(images, labels, epochs=3, callbacks=[backup], **usual), own)
for wrong in ({"no_such": 1}, {"x": images, "y": labels[:3]}):
    try:
        own.fit(**wrong)
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0][:40])  # noqa: T201
say("last", own.fit(images, labels, epochs=2, **usual), own)
sys.exit(7)
