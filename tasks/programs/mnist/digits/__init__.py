"""Trains a classifier of handwritten digits; `python -m digits.train --data-folder FOLDER` needs nothing else.

It imports nothing of the pipeline: what it is told stands in its arguments, and in the variables `OUTPUTS_FOLDER`,
`CHECKPOINT_FOLDER`, `ACCELERATOR`, and MLflow's own.
"""
