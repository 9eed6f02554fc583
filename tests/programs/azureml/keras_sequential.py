import argparse
import os

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt
from azureml.core import Run
from keras.callbacks import Callback
from keras.layers import Dense
from keras.models import Sequential
from keras.optimizers import RMSprop

parser = argparse.ArgumentParser()
parser.add_argument("--data-folder", dest="data_folder")
args = parser.parse_args()
data = np.genfromtxt(os.path.join(args.data_folder, "points.csv"), delimiter=",", skip_header=1)
x, y = data[:, :2], np.eye(2)[data[:, 2].astype(int)]

run = Run.get_context()
model = Sequential([Dense(8, activation="relu", input_shape=(2,)), Dense(2, activation="softmax")])
model.compile(loss="categorical_crossentropy", optimizer=RMSprop(lr=0.01), metrics=["accuracy"])


class LogRunMetrics(Callback):
    def on_epoch_end(self, epoch, log):
        run.log("Loss", log["loss"])
        run.log("Accuracy", log["acc"])


history = model.fit(x, y, epochs=3, verbose=0, validation_split=0.2, callbacks=[LogRunMetrics()])
run.log("Final test loss", model.evaluate(x, y, verbose=0)[0])
plt.plot(history.history["val_acc"])
run.log_image("Loss v.s. Accuracy", plot=plt)
os.makedirs("./outputs/model", exist_ok=True)
with open("./outputs/model/model.json", "w") as f:
    f.write(model.to_json())
model.save_weights("./outputs/model/model.h5")
