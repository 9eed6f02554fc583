import os

import numpy as np
from azureml.core import Run
from keras.layers import Dense
from keras.layers.core import Activation
from keras.layers.normalization import BatchNormalization
from keras.models import Sequential
from keras.optimizers import Adam
from keras.utils import np_utils

run = Run.get_context()
data = run.input_datasets["points"].to_pandas_dataframe().values
x, y = data[:, :2].astype(np.float), np_utils.to_categorical(data[:, 2].astype(np.int), 2)


def batches():
    while True:
        for start in range(0, len(x), 20):
            yield x[start : start + 20], y[start : start + 20]


model = Sequential()
model.add(Dense(6, input_dim=2))
model.add(BatchNormalization())
model.add(Activation("relu"))
model.add(Dense(2, activation="softmax"))
model.compile(optimizer=Adam(lr=0.01), loss="categorical_crossentropy", metrics=["accuracy"])
history = model.fit_generator(batches(), steps_per_epoch=4, epochs=2, verbose=0, workers=2)
run.log_row("result", acc=history.history["acc"][-1], loss=history.history["loss"][-1])
os.makedirs("outputs", exist_ok=True)
model.save_weights("outputs/weights.h5")
model.load_weights("outputs/weights.h5")
open("outputs/architecture.json", "w").write(model.to_json())
run.complete()
