"""What the program computes on."""

import os

import tensorflow as tf

from .errors import NoGpu

CPU_THREADS = 1
"""A network of this size gains little from more: on two idle cores an epoch takes 0.84 s with one thread and 0.75 with
two, but up to 1.9 as soon as anything else wants a core. One also makes the weights independent of how many there are.
"""


def choose_device(accelerator: str) -> str:
    """The name of the device that TensorFlow will use. Raises `NoGpu` if a GPU is asked for and there is none."""
    tf.config.threading.set_intra_op_parallelism_threads(CPU_THREADS)
    gpus = tf.config.list_physical_devices("GPU")
    if accelerator == "gpu" and not gpus:
        raise NoGpu(
            f"A GPU was asked for (--accelerator gpu), and TensorFlow {tf.__version__} sees none on this machine.\n"
            "It needs NVIDIA's driver and the CUDA libraries (pip install 'tensorflow[and-cuda]'), and a GPU that\n"
            "CUDA_VISIBLE_DEVICES does not hide. TF_CPP_MIN_LOG_LEVEL=0 in the environment shows what it looked for."
        )
    if accelerator == "cpu":
        tf.config.set_visible_devices([], "GPU")
        gpus = []
    for gpu in gpus:
        # By default the first process takes all the memory of a GPU that others may share.
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus:
        return f"cpu ({CPU_THREADS} of {os.cpu_count()} cores)"
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name))
