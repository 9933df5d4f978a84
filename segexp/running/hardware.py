"""What ``auto`` is in ``trainer.format`` and ``trainer.precision`` here: fixed rules, as the identity has the result.
Sweeps are planned without torch and without taking memory of a GPU, so its driver is asked."""

import ctypes
import dataclasses
import functools
import importlib.util
import os
import re
import sys
from pathlib import Path

import numpy as np

from segexp.config import Config, params
from segexp.errors import UsageError
from segexp.models.architectures import ARCHITECTURES, memory_format

_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of CPUs; the last is Arm's
_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of CUDA's driver interface


def without_auto(config: Config, sizes_N2: np.ndarray) -> Config:
    """The configuration with the format and precision that a run of it has here. sizes_N2: height and width of the
    images in pixels. Raises UsageError where ``trainer.device=cuda`` and no GPU can be asked for its precisions."""
    trainer = config.trainer
    device = trainer.device
    if device == "auto":  # as `device_of` chooses
        device = "mps" if sys.platform == "darwin" else "cuda" if cuda_capability() else "cpu"
    if trainer.precision == "auto":
        trainer = dataclasses.replace(trainer, precision="bf16" if has_bf16(device) else "fp32")
    if trainer.format == "auto":
        divisor = ARCHITECTURES[config.model.name].divisor.of(params(config.model))
        size = config.dataset.image_size or -(-int(sizes_N2.max()) // divisor) * divisor
        trainer = dataclasses.replace(trainer, format=memory_format(device, size, config.model.name))
    return dataclasses.replace(config, trainer=trainer)


def has_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 itself: GPUs of capability 8.0 or higher, CPUs as Linux knows them."""
    if device == "cuda" and not cuda_capability():
        raise UsageError("trainer.precision=auto: no NVIDIA GPU can be asked here: set trainer.precision=bf16 or fp32")
    cpu = Path("/proc/cpuinfo")
    if device != "cpu" or not cpu.exists():
        return device == "cuda" and cuda_capability() >= 8
    flags = re.search(r"(?m)^(?:flags|Features)\s*:(.*)$", cpu.read_text(encoding="utf-8"))
    return bool(flags and _BF16 & {*flags[1].split()})


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
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(gpu), 0)
    return 0 if failed or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, gpu) else major.value
