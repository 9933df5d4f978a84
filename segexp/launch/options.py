"""Options of `hydra/launcher=local`: how many runs at once, on what, and what happens to those that die."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LocalOptions:
    """``hydra.launcher.*`` of a sweep on this machine. Nothing here changes what a run is.

    n_jobs: runs at once; auto: one per GPU slot, or without GPUs one per ``threads`` CPU cores.
    threads: CPU threads of each run, where ``trainer.threads`` does not say and the run has not begun with another
    number; auto: the cores shared out between ``n_jobs``, if that is given, else 1.
    gpus: auto (all that are visible), a number of them, or a list of their indices; 0: none.
    runs_per_gpu: runs that share a GPU.
    retries: how often a run whose process died (killed, out of memory, segmentation fault) is continued.
    timeout_minutes: how long one attempt of a run may take; null: as long as it wants.
    """

    n_jobs: Any = "auto"
    threads: Any = "auto"
    gpus: Any = field(default="auto")
    runs_per_gpu: int = 1
    retries: int = 1
    timeout_minutes: float | None = None
