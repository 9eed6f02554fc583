"""The training program: not a task. `train_model` ships this folder to the compute and runs it there."""
