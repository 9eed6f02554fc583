"""What a training can be told: declared here once, for the form, the flags, MLflow and the program.

A new knob is one field here and one use of it.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def _in_order(schema: dict[str, Any]) -> None:
    # Prefect keeps the schema in a JSONB column of PostgreSQL, which sorts keys by their length; its form goes by this.
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


class Hyperparameters(BaseModel):
    """What to train; together with the data set and the program it decides the resulting weights."""

    # Unknown keys are refused: a misspelled one in a form or a deployment would pass unseen.
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_in_order)

    batch_size: int = Field(50, ge=1, le=10_000, description="Images per optimizer step.")
    first_layer_neurons: int = Field(300, ge=1, le=16_384, description="Width of the first hidden layer.")
    second_layer_neurons: int = Field(100, ge=1, le=16_384, description="Width of the second hidden layer.")
    learning_rate: float = Field(0.001, gt=0, le=1, description="Learning rate of RMSprop.")
    epochs: int = Field(20, ge=1, le=1_000, description="Passes over the training images.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Decides the initial weights and the order of images.")
    validation_images: int = Field(
        0,
        ge=0,
        le=50_000,
        description="Held out from the end of the training set, to choose the best epoch by; "
        "0: as many as the data set says, or 5,000.",
    )


VALIDATION_IMAGES = 5_000
"""Where neither who trains nor the data set says how many."""

DEFAULTS = Hyperparameters()
"""Those of the tutorial, with a seed and validation images of their own."""
