"""What the digit classifier tells by its own lines, for it has no runner yet that tells events."""

import re
from typing import Any

_EPOCH = re.compile(r"epoch (\d+)/(\d+)\b")


def event_of(line: str) -> dict[str, Any]:
    """What `infra.compute.runner.output.EVENT` describes, read from a line of `tasks/training_program`."""
    if line == "standing by":
        return {"phase": "running"}
    if line.startswith("post-processing"):
        return {"phase": "post_processing"}
    found = _EPOCH.match(line)
    return {"epoch": int(found[1]), "epochs": int(found[2])} if found else {}
