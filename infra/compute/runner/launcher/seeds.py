"""The seeds of a program: Python's at once, those of NumPy, TensorFlow and Keras when the program imports them.

Nothing is imported for it, and what the program seeds itself afterwards counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

When = Callable[[str, Callable[[Any], None]], None]


def install(seed: int, when: When) -> None:
    """Seed what there is, and have `when(module, action)` seed the rest."""
    random.seed(seed)
    when("numpy.random", lambda module: module.seed(seed))
    when("tensorflow", lambda module: module.random.set_seed(seed))
    # Python's and NumPy's again, and the backend's.
    when("keras", lambda module: module.utils.set_random_seed(seed))
