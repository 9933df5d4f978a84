"""What ``auto`` is in ``trainer.format`` and ``trainer.precision`` on this machine.

Fixed rules of device, image size and network, because the values enter the identity of a run; nothing is timed. torch
is not imported, as sweeps are planned without it: the driver of the GPU is asked, which takes no memory there.
"""

import ctypes
import dataclasses
import functools
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np

from segexp.config import Config, params
from segexp.errors import UsageError
from segexp.models.architectures import ARCHITECTURES, memory_format


def without_auto(config: Config, sizes_N2: np.ndarray) -> Config:
    """The configuration with the format and precision that a run of it has here.

    sizes_N2: height and width of each image in pixels; the largest counts where ``dataset.image_size`` is null. Raises
    UsageError where ``trainer.device=cuda`` and no GPU can be asked for its precisions.
    """
    trainer = config.trainer
    device = trainer.device if trainer.device != "auto" else _device()
    if trainer.precision == "auto":
        trainer = dataclasses.replace(trainer, precision="bf16" if _has_bf16(device) else "fp32")
    if trainer.format == "auto":
        divisor = ARCHITECTURES[config.model.name].divisor.of(params(config.model))
        size = config.dataset.image_size or -(-int(sizes_N2.max()) // divisor) * divisor
        trainer = dataclasses.replace(trainer, format=memory_format(device, size, config.model.name))
    return dataclasses.replace(config, trainer=trainer)


def _device() -> str:
    """The type of device that ``trainer.device=auto`` takes."""
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    return "cuda" if cuda_capability() else "cpu"


def _has_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 matrices itself: GPUs of compute capability 8.0 and higher, and CPUs with
    AVX512-BF16, AMX-BF16 or Arm's BF16, where Linux lists them. Raises UsageError where this cannot be known."""
    if device == "cuda":
        if not cuda_capability():
            raise UsageError("trainer.precision=auto: there is no GPU here to ask: set trainer.precision=bf16 or fp32")
        return cuda_capability() >= 8
    try:
        flags = re.search(r"(?m)^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return False
    return (
        device == "cpu" and flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[1].split())
    )


_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}

_MAJOR = 75
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of CUDA's driver interface."""


@functools.cache
def cuda_capability() -> int:
    """The major compute capability of the first GPU that is visible; 0 where there is none, or torch has no CUDA."""
    torch = importlib.util.find_spec("torch")
    version = Path(str(torch and torch.origin)).with_name("version.py").read_text(encoding="utf-8")
    if not re.search(r"(?m)^cuda\b.*= *'", version):
        return 0
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    gpu, major = ctypes.c_int(), ctypes.c_int()
    asked = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(gpu), 0)
    return 0 if asked or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, gpu) else major.value
