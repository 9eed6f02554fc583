"""Which step of a metric an epoch is, where a program calls `Model.fit` more than once.

Each fit counts its epochs anew. Their steps go on, so that no point covers another: the epochs of the first fit are
their own steps, those of a later one begin after the last step of the fit before.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class _Fit:
    first: int
    """The number of epochs that it counts as done when it begins: `initial_epoch` of the script."""
    base: int
    """The last step before it."""
    epochs: int = 0
    """How many are over."""

    @property
    def last_step(self) -> int:
        return self.base + self.epochs


class Fits:
    """The fits of a training, counted from 1 in the order in which the script calls them."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """`state` is that of the attempt before, as its checkpoint has it."""
        self._fits = [_Fit(**fit) for fit in (state or {}).get("fits", [])]

    def __len__(self) -> int:
        return len(self._fits)

    @property
    def state(self) -> dict[str, Any]:
        """What makes the same of it again, as JSON."""
        return {"fits": [asdict(fit) for fit in self._fits]}

    def begin(self, number: int, initial_epoch: int) -> None:
        """A fit begins, or goes on after the epochs that a checkpoint has of it."""
        while len(self._fits) < number:
            base = self._fits[-1].last_step if self._fits else initial_epoch
            self._fits.append(_Fit(initial_epoch, base))
        fit = self._fits[number - 1]
        # A fit that was stopped early, and is not repeated, has fewer than it is said to begin with.
        fit.epochs = min(fit.epochs, max(0, initial_epoch - fit.first))

    def add(self, number: int, epoch: int) -> int:
        """An epoch is over, counted from 1; the step of its metrics."""
        if len(self._fits) < number:
            self.begin(number, epoch - 1)
        fit = self._fits[number - 1]
        fit.epochs = epoch - fit.first
        return fit.last_step

    def steps(self, number: int) -> range:
        """The steps of a fit so far."""
        fit = self._fits[number - 1]
        return range(fit.base + 1, fit.last_step + 1)
