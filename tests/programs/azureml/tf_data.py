import argparse

import numpy as np
import tensorflow as tf
from azureml.core import Run

parser = argparse.ArgumentParser()
parser.add_argument("--data-folder", type=str)
parser.add_argument("--batch", type=int, default=20)
args = parser.parse_args()
run = Run.get_context()
rows = np.genfromtxt(args.data_folder + "/points.csv", delimiter=",", skip_header=1).astype("float32")
train = tf.data.Dataset.from_tensor_slices((rows[:, :2], rows[:, 2])).batch(args.batch).repeat()
model = tf.keras.Sequential([tf.keras.layers.Dense(8, activation="relu"), tf.keras.layers.Dense(1)])
model.compile(optimizer=tf.keras.optimizers.SGD(lr=0.1), loss="mse")


class LogToAzure(tf.keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        for name, value in logs.items():
            self.model.run.log(name, value)


model.run = run
model.fit(train, steps_per_epoch=3, epochs=2, verbose=0, callbacks=[LogToAzure()])
run.log("mean squared error", np.float32(model.evaluate(train, steps=3, verbose=0)))
model.save("outputs/network.h5")
