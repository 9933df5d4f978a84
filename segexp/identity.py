"""Which run a configuration and its data are: the hash that names a run directory, and that of its arm."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from segexp.config import Config, flatten

VOLATILE = (
    "outputs",
    "study",
    "sweep",
    "tuned",
    "resume",
    "dataset.name",
    "dataset.root",
    "dataset.group_file",
    "trainer.device",
    "trainer.threads",
    "trainer.workers",
)
"""Keys that say where and how a run is carried out, not what it is: they do not enter its identity."""


def is_volatile(key: str) -> bool:
    """Whether a dotted key says where and how a run is carried out, and so does not enter its identity."""
    return key in VOLATILE or key.partition(".")[0] in VOLATILE


def identity(config: Config, content: Mapping[str, str]) -> str:
    """SHA-256 (hex) of what the run is: the canonical configuration without volatile keys, and content hashes.

    ``content`` holds the fingerprints of what the configuration only points at: data, split, weight files.
    """
    flat = {k: v for k, v in flatten(config).items() if not is_volatile(k)}
    if content.get("weights"):
        flat.pop("backbone.weights")
    # Absent where there are no folds, so that runs recorded before there were any keep their identity.
    for key in ("split.folds", "split.fold"):
        if flat[key] is None:
            flat.pop(key)
    text = json.dumps({"config": flat, "content": dict(content)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def arm_identity(config: Config, content: Mapping[str, str]) -> str:
    """The identity of the arm's first run, of seed 0 and fold 0: the runs of one arm share it.

    ``content`` is that of fold 0 where there are folds.
    """
    split = dataclasses.replace(config.split, fold=None if config.split.folds is None else 0)
    return identity(dataclasses.replace(config, seed=0, split=split), content)
