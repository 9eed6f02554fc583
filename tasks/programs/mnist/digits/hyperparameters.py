"""What a training can be told, as the `MLproject` beside this package declares it: defaults, bounds and words."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

_PROJECT = Path(__file__).parent.parent / "MLproject"
_DECLARED = yaml.safe_load(_PROJECT.read_text(encoding="utf-8"))["entry_points"]["main"]["parameters"]


def _declared(name: str) -> Any:
    facts = _DECLARED[name]
    return Field(facts["default"], ge=facts["min"], le=facts["max"], description=facts["description"])


def _in_order(schema: dict[str, Any]) -> None:
    # Prefect keeps the schema in a JSONB column of PostgreSQL, which sorts keys by their length; its form goes by this.
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position


class Hyperparameters(BaseModel):
    """What to train; together with the data set and the program it decides the resulting weights."""

    # Unknown keys are refused: a misspelled one in a form or a deployment would pass unseen.
    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_in_order)

    batch_size: int = _declared("batch_size")
    first_layer_neurons: int = _declared("first_layer_neurons")
    second_layer_neurons: int = _declared("second_layer_neurons")
    learning_rate: float = _declared("learning_rate")
    epochs: int = _declared("epochs")
    seed: int = _declared("seed")
    validation_images: int = _declared("validation_images")


VALIDATION_IMAGES = 5_000
"""Where neither who trains nor the data set says how many."""

DEFAULTS = Hyperparameters()
"""Those of the tutorial, with a seed and validation images of their own."""
