"""What the program can compute on."""

import os
import subprocess
from importlib.util import find_spec
from typing import Any

from .exits import NoGpu


def visible_gpus() -> list[str]:
    """The names of the NVIDIA GPUs that the driver shows and CUDA_VISIBLE_DEVICES does not hide."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return []
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.stdout.decode().splitlines() if line.strip()]


def devices(own_environment: bool) -> list[dict[str, Any]]:
    """`kind` (`cpu` or `gpu`) and `name` of each device: what TensorFlow shows, or without it, nvidia-smi.

    `own_environment`: the libraries of this process are not the program's.
    """
    if own_environment or find_spec("tensorflow") is None:
        gpus = [{"kind": "gpu", "name": name} for name in visible_gpus()]
        return [{"kind": "cpu", "name": "cpu"}, *gpus]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    return [
        {
            "kind": device.device_type.lower(),
            "name": tf.config.experimental.get_device_details(device).get("device_name", device.name),
        }
        for device in tf.config.list_physical_devices()
    ]


def require_gpu(accelerator: str) -> None:
    """Raise `NoGpu` if a GPU is asked for and there is none."""
    if accelerator == "gpu" and not visible_gpus():
        raise NoGpu(
            "A GPU was asked for (--accelerator gpu), and there is none on this machine: nvidia-smi lists none, or\n"
            "CUDA_VISIBLE_DEVICES hides it. Install NVIDIA's driver, or train with --accelerator cpu."
        )
