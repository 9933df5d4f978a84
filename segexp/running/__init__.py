"""The composition root: one `Config` -> one finished run directory.

prepare  reads and checks the data, splits them, and names the run (no torch)
execute  builds, trains, scores and records it, or continues what an earlier attempt left
"""

from segexp.running.build import initial_network
from segexp.running.execute import Outcome, execute, finished_before, record_death, set_aside, threads_begun_with
from segexp.running.prepare import LoadedDataset, RunSpec, config_yaml, open_images, prepare

__all__ = [
    "LoadedDataset",
    "Outcome",
    "RunSpec",
    "config_yaml",
    "execute",
    "finished_before",
    "initial_network",
    "open_images",
    "prepare",
    "record_death",
    "set_aside",
    "threads_begun_with",
]
