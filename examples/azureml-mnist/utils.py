"""Reads the files of MNIST: IDX, gzipped."""

import gzip
import struct

import numpy as np


def load_data(filename, label=False):
    """Images as rows of pixels, 0 to 255; with `label`, a column of digits."""
    with gzip.open(filename) as gz:
        _, count = struct.unpack(">II", gz.read(8))
        shape = (count, 1) if label else (count, int(np.prod(struct.unpack(">II", gz.read(8)))))
        return np.frombuffer(gz.read(), dtype=np.uint8).reshape(shape)


def one_hot_encode(array, num_of_classes):
    """A row of zeros with a one for each digit."""
    return np.eye(num_of_classes)[array.reshape(-1)]
