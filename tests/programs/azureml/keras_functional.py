import glob
import sys

import tensorflow as tf
from azureml.core.run import Run
from tensorflow.keras.callbacks import EarlyStopping, ModelCheckpoint
from tensorflow.keras.layers import Dense, Input
from tensorflow.keras.models import Model, load_model

run = Run.get_context()
data = run.input_datasets["points"].to_pandas_dataframe()
x, y = data[["a", "b"]].values.astype("float32"), data["label"].values
inputs = Input(shape=(2,))
outputs = Dense(1, activation="sigmoid")(Dense(8, activation="tanh")(inputs))
model = Model(inputs=inputs, outputs=outputs)
model.compile(tf.keras.optimizers.Adam(lr=0.05), "binary_crossentropy", metrics=["accuracy"])
tf.io.gfile.makedirs("checkpoints")
callbacks = [
    ModelCheckpoint("checkpoints/w.{epoch:02d}-{val_acc:.2f}.hdf5", monitor="val_acc", save_best_only=True),
    EarlyStopping(monitor="val_acc", patience=9),
]
history = model.fit(x, y, validation_data=(x, y), epochs=3, verbose=0, callbacks=callbacks)
run.log_list("Validation accuracy", history.history["val_acc"])
for loss in history.history["loss"]:
    run.log("loss", loss)
best = load_model(sorted(glob.glob("checkpoints/*.hdf5"))[-1])
best.save("outputs/best.h5")
run.tag("framework", "tf.keras")
sys.exit(0)
