"""What an epoch must cost on this machine at least: its matrix products and the optimizer's memory traffic.

    python -m tests.benchmarks.floor

Measured with NumPy at the shapes of the default training (784-300-100-10, batch 50, 55,000 images), and independent of
TensorFlow. Not a bound in the strict sense: the products of other libraries may be faster than NumPy's.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

BATCH = 50
STEPS = 1_100
LAYERS = ((784, 300), (300, 100), (100, 10))
WEIGHTS = 266_610


@dataclass(frozen=True)
class Floor:
    """Seconds per epoch, and the rates behind them."""

    product_seconds: float
    memory_seconds: float
    gflop_per_second: float
    gigabytes_per_second: float

    @property
    def seconds(self) -> float:
        """Both together: the optimizer needs the gradients first."""
        return self.product_seconds + self.memory_seconds


def measure(threads: int) -> Floor:
    """The best of several measurements with so many threads, for what disturbs them only ever adds."""
    with threadpool_limits(threads):
        return _measure()


def _measure() -> Floor:
    rng = np.random.default_rng(0)
    products = []
    for index, (rows, columns) in enumerate(LAYERS):
        weights = rng.random((rows, columns), np.float32)
        inputs = rng.random((BATCH, rows), np.float32)
        gradients = rng.random((BATCH, columns), np.float32)
        products += [(inputs, weights), (inputs.T, gradients)]
        # Nobody needs the gradient of the images.
        products += [(gradients, weights.T)] if index else []
    operations = STEPS * sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right in products)
    results = [left @ right for left, right in products]

    def multiply() -> None:
        for (left, right), result in zip(products, results, strict=True):
            np.matmul(left, right, out=result)

    source, target = np.ones(WEIGHTS, np.float32), np.ones(WEIGHTS, np.float32)
    product_seconds = STEPS * _best(multiply)
    copy_rate = 2 * source.nbytes / _best(lambda: np.copyto(target, source))
    # RMSprop reads the gradient, and reads and writes the weights and their moving averages.
    memory_seconds = STEPS * 5 * source.nbytes / copy_rate
    return Floor(product_seconds, memory_seconds, operations / product_seconds / 1e9, copy_rate / 1e9)


def _best(action: Callable[[], object], repetitions: int = 100, rounds: int = 9) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(repetitions):
            action()
        seconds.append((time.perf_counter() - started) / repetitions)
    return min(seconds)


if __name__ == "__main__":
    floor = measure(1)
    sys.stdout.write(
        f"{floor.seconds:.2f} s per epoch: {floor.product_seconds:.2f} s of matrix products at "
        f"{floor.gflop_per_second:.0f} GFLOP/s, {floor.memory_seconds:.2f} s of memory traffic at "
        f"{floor.gigabytes_per_second:.0f} GB/s\n"
    )
