"""A network that NumPy computes, in the place of Keras's: the service around it is the real one."""

from dataclasses import dataclass, field
from threading import Event

import numpy as np

from infra.service.application import OPEN_PATHS, application
from infra.service.contract import Arrays, Contract, Tensor
from infra.service.served import Served, Standing
from infra.service.server import Server, bound
from infra.stack.guard import Guard

PIXELS = 784
KEY = "the-key"


@dataclass
class NumpyNetwork:
    """Answers a row with the class that `shift` says, of ten, after the sum of its pixels."""

    shift: int = 0
    is_quick: bool = True
    gathers: bool = False
    release: Event | None = None
    """What each call waits for."""
    fails: int = 0
    """How many calls fail."""
    sizes: list[int] = field(default_factory=list)
    """Rows of each call."""
    seconds: tuple[float, float] = (0.001, 0.002)

    @property
    def contract(self) -> Contract:
        image, shares = Tensor("image", "uint8", (28, 28)), Tensor("output_0", "float32", (10,))
        return Contract((image,), (shares,), named_outputs=False, score_scale=255.0)

    @property
    def weights_sha256(self) -> str:
        return f"{self.shift:064d}"

    def __call__(self, inputs: Arrays) -> Arrays:
        self.sizes.append(len(inputs[0]))
        if len(self.sizes) <= self.fails:
            raise MemoryError
        if self.release:
            assert self.release.wait(30)
        classes = (inputs[0].reshape(-1, PIXELS).astype(int).sum(axis=1) + self.shift) % 10
        return [np.eye(10, dtype=np.float32)[classes]]


def served(network: NumpyNetwork, version: int = 1, **tags: str) -> Served:
    """A version with this network."""
    links = {"run": f"http://mlflow/run-{version}", "version": ""}
    return Served("digits", version, f"run-{version}", network, tags, links)  # type: ignore[arg-type]


def standing(network: NumpyNetwork) -> Standing:
    """A service of version 1 with this network."""
    return Standing(served(network))


def row(total: int) -> list[float]:
    """A flat row for `/score`, with pixels whose sum is this."""
    return [min(255, max(0, total - 255 * place)) / 255 for place in range(PIXELS)]


def main() -> None:
    """Serve version 1 on a free port, which is printed, until told to end."""
    now = standing(NumpyNetwork())
    app = Guard(application(now), [], lambda: (KEY.encode(),), OPEN_PATHS)
    listener = bound("127.0.0.1", 0)
    server = Server(app, now)
    listener.listen(2_048)
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    server.run([listener])
    print("ended", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
