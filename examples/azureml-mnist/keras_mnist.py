"""Digits by two dense layers, as scripts for Azure ML were written in 2019: `lr=`, `acc`, JSON beside `model.h5`."""

import argparse
import glob
import os

import matplotlib

matplotlib.use("Agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from azureml.core import Run
from keras.callbacks import Callback
from keras.layers import Dense
from keras.models import Sequential, model_from_json
from keras.optimizers import RMSprop
from utils import load_data, one_hot_encode

print("Keras version:", keras.__version__)
print("Tensorflow version:", tf.__version__)

parser = argparse.ArgumentParser()
parser.add_argument("--data-folder", type=str, dest="data_folder", help="where the data is")
parser.add_argument("--batch-size", type=int, dest="batch_size", default=50)
parser.add_argument("--first-layer-neurons", type=int, dest="n_hidden_1", default=300)
parser.add_argument("--second-layer-neurons", type=int, dest="n_hidden_2", default=100)
parser.add_argument("--learning-rate", type=float, dest="learning_rate", default=0.001)
parser.add_argument("--epochs", type=int, default=20)
args = parser.parse_args()

print("training dataset is stored here:", args.data_folder)


def find(name):
    return glob.glob(os.path.join(args.data_folder, "**/" + name), recursive=True)[0]


X_train = load_data(find("train-images-idx3-ubyte.gz")).astype(np.float32) / 255.0
X_test = load_data(find("t10k-images-idx3-ubyte.gz")).astype(np.float32) / 255.0
y_train = one_hot_encode(load_data(find("train-labels-idx1-ubyte.gz"), True), 10)
y_test = one_hot_encode(load_data(find("t10k-labels-idx1-ubyte.gz"), True), 10)
print(X_train.shape, y_train.shape, X_test.shape, y_test.shape, sep="\n")

model = Sequential()
model.add(Dense(args.n_hidden_1, activation="relu", input_shape=(X_train.shape[1],), name="hidden1"))
model.add(Dense(args.n_hidden_2, activation="relu", name="hidden2"))
model.add(Dense(10, activation="softmax", name="output"))
model.summary()
model.compile(
    loss="categorical_crossentropy",
    optimizer=RMSprop(lr=args.learning_rate),
    metrics=["accuracy"],
)

run = Run.get_context()


class LogRunMetrics(Callback):
    def on_epoch_end(self, epoch, log):
        run.log("Loss", log["loss"])
        run.log("Accuracy", log["acc"])


# The test images are for the end alone.
history = model.fit(
    X_train,
    y_train,
    batch_size=args.batch_size,
    epochs=args.epochs,
    verbose=2,
    validation_split=0.1,
    callbacks=[LogRunMetrics()],
)

score = model.evaluate(X_test, y_test, verbose=0)
run.log("Final test loss", score[0])
run.log("Final test accuracy", score[1])
print("Test loss:", score[0])
print("Test accuracy:", score[1])

plt.figure(figsize=(6, 3))
plt.title("MNIST with Keras MLP ({} epochs)".format(args.epochs), fontsize=14)
plt.plot(history.history["val_acc"], "b-", label="Accuracy", lw=4, alpha=0.5)
plt.plot(history.history["val_loss"], "r--", label="Loss", lw=4, alpha=0.5)
plt.legend(fontsize=12)
plt.grid(True)
run.log_image("Loss v.s. Accuracy", plot=plt)

os.makedirs("./outputs/model", exist_ok=True)
with open("./outputs/model/model.json", "w") as f:
    f.write(model.to_json())
model.save_weights("./outputs/model/model.h5")
print("model saved in ./outputs/model folder")

# As a service would load it.
with open("./outputs/model/model.json") as f:
    loaded = model_from_json(f.read())
loaded.load_weights("./outputs/model/model.h5")
print("digits:", *np.argmax(loaded.predict(X_test[:30], verbose=0), axis=1))

run.register_model(model_name="keras-dnn-mnist", model_path="outputs/model", tags={"data": "mnist"})
run.complete()
