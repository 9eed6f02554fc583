"""What of the environment reaches the libraries that compute: nothing that could change the weights.

A training is known by its data set, hyperparameters, program and library versions. What else Keras, TensorFlow, XLA,
oneDNN and NumPy read would change the weights behind its back, so it is not left for them to read. Tried one by one on
a small training, with Keras 3.15, TensorFlow 2.21 and NumPy 2.4 on a processor with AVX-512, other weights came of:

    ~/.keras/keras.json, or that in KERAS_HOME, with another floatx or image_data_format
    XLA_FLAGS  (fast math, instruction set, optimization level, threads), TF_JIT_COMPILE_REWRITE
    TF_DETERMINISTIC_OPS, ONEDNN_MAX_CPU_ISA, DNNL_MAX_CPU_ISA
"""

import os

_READ_BY_LIBRARIES = (
    # Keras, TensorFlow and XLA.
    "AUTOGRAPH_",
    "KERAS_",
    "TF_",
    "TF2_",
    "XLA_",
    # The compilers under XLA.
    "DISABLE_LLVM_OPT",
    "DISABLE_PTXAS_OPT",
    "LLVM_",
    "MLIR_",
    # What multiplies matrices on the CPU.
    "BLIS_",
    "DISABLE_DNNL_BACKEND",
    "DNNL_",
    "GOTO_",
    "KMP_",
    "MKL_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    # NumPy.
    "NPY_",
    "NUMPY_",
    # What computes on a GPU; which GPU is CUDA_VISIBLE_DEVICES, and that stays.
    "CUBLAS",
    "CUDNN_",
    "NVIDIA_TF32_OVERRIDE",
)
"""How the names begin that these libraries read, by their sources and the strings in their binaries."""

_LOGGING_ONLY = {"TF_CPP_MIN_LOG_LEVEL", "TF_CPP_MAX_VLOG_LEVEL", "TF_CPP_VMODULE"}

_FIXED = {
    "KERAS_BACKEND": "tensorflow",
    # Where no keras.json can be, nor be written: Keras goes by its defaults then.
    "KERAS_HOME": os.devnull,
}


IGNORED: list[str] = []
"""The names of what `isolate` took from this process's environment."""


def isolate() -> None:
    """Take from this process's environment what could change the weights, and set what must be.

    To be called before NumPy, Keras or TensorFlow is imported: they read it then.
    """
    IGNORED[:] = sorted(filter(can_change_weights, os.environ))
    for name in IGNORED:
        del os.environ[name]
    os.environ.update(_FIXED)


def can_change_weights(name: str) -> bool:
    """True if a library that computes may read the environment variable `name`."""
    return name.startswith(_READ_BY_LIBRARIES) and name not in _LOGGING_ONLY
