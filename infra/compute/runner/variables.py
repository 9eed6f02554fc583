"""The environment variables of the program: a stated list of ours, known values, and what it is told.

What is not named here does not reach it: neither the store's keys nor whatever else this process was given.
"""

import os
import re
from collections.abc import Mapping

from .order import Order, Program

THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)
"""They are passed on, and can change weights: sums are split by them."""

_PASSED = (
    # Paths.
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    # Locale.
    *("LANG", "LANGUAGE", "TZ"),
    *THREADS,
    # GPUs.
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH"),
    # How much TensorFlow says.
    *("TF_CPP_MIN_LOG_LEVEL", "TF_CPP_MAX_VLOG_LEVEL", "TF_CPP_VMODULE"),
)
_PASSED_BEGINNINGS = ("LC_", "NVIDIA_")
_PASSED_NOT = {"NVIDIA_TF32_OVERRIDE"}  # It changes what a GPU computes.

_TRACKING_URI = "MLFLOW_TRACKING_URI"
_MLFLOW_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

_KNOWN = {
    "KERAS_BACKEND": "tensorflow",
    # Where no keras.json can be, nor be written: Keras goes by its defaults then.
    "KERAS_HOME": os.devnull,
    # The order of sets of texts is another in each process by default.
    "PYTHONHASHSEED": "0",
    # By default TensorFlow takes all the memory of a GPU that others may share.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}

_SET_UNLESS_GIVEN = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MPLBACKEND": "Agg",  # No screen is there; with another, plt.show() would wait for a person.
}

MLFLOW_CLIENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Seven times by default, with 120 s for each answer.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""How MLflow's client is to behave, in the program and here."""


def first_variables(program: Program, python_folder: str, temporary: str) -> dict[str, str]:
    """The variables with which the program's process starts, before there is an order.

    `python_folder` is that of its Python, which is to come first among those of programs; `temporary` is its own.
    """
    ours = {
        name: value
        for name, value in os.environ.items()
        if (name in _PASSED or name.startswith(_PASSED_BEGINNINGS)) and name not in _PASSED_NOT
    }
    known = {name: value for name, value in _KNOWN.items() if name not in program.sets_variables} | MLFLOW_CLIENT
    # An address with a login, as databases have it, is for programs that use MLflow alone.
    if program.uses_mlflow:
        known |= {name: os.environ[name] for name in (_TRACKING_URI, *_MLFLOW_LOGIN) if name in os.environ}
    elif not re.search(r"://[^/]*@", address := os.environ.get(_TRACKING_URI, "")):
        known |= {_TRACKING_URI: address} if address else {}
    path = os.pathsep.join(filter(None, (python_folder, ours.get("PATH", os.defpath))))
    named = {name: os.environ[name] for name in program.variables if name in os.environ}
    return {**_SET_UNLESS_GIVEN, **ours, **known, "PATH": path, "TMPDIR": temporary, **named}


def all_variables(first: Mapping[str, str], order: Order, told: Mapping[str, str]) -> dict[str, str]:
    """The variables with which the program itself begins; `told` are those that name its folders and its MLflow."""
    variables = {**first, **told, "ACCELERATOR": order.accelerator}
    if _TRACKING_URI in told:
        # A key that it is told is for the MLflow that it is told of, and others are not.
        variables = {name: value for name, value in variables.items() if name in told or name not in _MLFLOW_LOGIN}
    if order.accelerator == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = "-1"
    return variables
