"""What a run was made with: versions, commit, device, seeds; the first content of run.json."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segexp
from segexp.models.build import Built, init_sha, parameter_count
from segexp.records import SCHEMA_VERSION, flatten
from segexp.running.build import head_record
from segexp.running.prepare import RunSpec

if TYPE_CHECKING:
    import torch


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of segexp, Python and the libraries that results depend on."""
    names = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "hydra-core", "omegaconf", "numpy", "scipy")
    found = {"segexp": segexp.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in names}


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that segexp runs from, whether tracked files differ from it, and a hash of how they do.

    None for an installed package.
    """
    checkout = Path(segexp.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    answers = []
    for question in (
        ["rev-parse", "HEAD"],
        ["diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD"],
    ):
        try:
            asked = subprocess.run(["git", "-C", str(checkout), *question], capture_output=True, check=False)
        except OSError:
            return None
        if asked.returncode:
            return None
        answers.append(asked.stdout.strip())
    commit, changes = answers
    return {
        "commit": commit.decode("ascii"),
        "dirty": bool(changes),
        "diff_sha": hashlib.sha256(changes).hexdigest() if changes else None,
    }


def _processor() -> str:
    """Name of the CPU; Python itself does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def first_record(prepared: RunSpec, built: Built, device: "torch.device", warnings: list[str]) -> dict[str, Any]:
    import torch

    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "error": "",
        "run_id": prepared.run_id,
        "config_id": prepared.config_id,
        "identity": prepared.identity,
        "dataset_sha": prepared.dataset_sha,
        "split_sha": prepared.split_sha,
        "init_sha": init_sha(built.network),
        "config": flatten(prepared.config),
        "seeds": {
            "seed": prepared.config.seed,
            "split.seed": prepared.config.split.seed,
            "dataset.seed": getattr(prepared.config.dataset, "seed", None),
        },
        "versions": versions() | {"torch": torch.__version__},
        "git": git_state(),
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "memory_format": "contiguous",
            "precision": prepared.config.trainer.precision,
        },
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": sys.argv,
        "started": now(),
        "finished": None,
        "n_params": parameter_count(built.network),
        "head": head_record(prepared),
        "input_size": built.size,
        "init": built.init,
        "swap_report": built.report.as_record(),
        "warnings": warnings,
        "n_rows_expected": {},
    }
