"""What `segexp export` and `segexp card` share: the facts that travel with a network, and files that are never
overwritten."""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segexp.config import Config
from segexp.errors import UsageError
from segexp.models.architectures import ARCHITECTURES
from segexp.records import flatten
from segexp.records.scores import class_label

GROUPS = ("model", "hidden_activation", "activation", "loss")
DATA = ("name", "licence", "citation", "url", "fit", "image_size", "normalise")
KEYS = ("backbone.name", "head.mode", *(f"dataset.{key}" for key in DATA))
"""What is published of a configuration: all options of the groups, and these keys. No path, host or user."""


def facts_of(config: Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a user of a finished run's network must know, as plain values: `GROUPS`, `KEYS`, and:

    normalisation: mean and std per channel, after the rule of ``dataset.normalise``; stored: of stored values, else of
    values in [0, 1]. threshold_tuned: a probability (`identity`: a value), None under softmax. learned: learned options
    of the output activation.
    """
    flat, tuned = flatten(config), record["summary"].get("threshold_tuned")
    if tuned is not None:
        tuned = tuned + 0.5 if config.activation.name == "identity" else 1 / (1 + math.exp(-tuned))
    options = {key.removeprefix("model."): value for key, value in flat.items() if key.startswith("model.")}
    return {
        "segexp": record["versions"]["segexp"],
        "run_id": record["run_id"],
        "identity": record["identity"],
        **{key: value for key, value in flat.items() if key in KEYS or key.split(".")[0] in GROUPS},
        "classes": [class_label(flat, c) for c in range(config.dataset.num_classes)],
        "normalisation": {"stored": False, **record["normalisation"]},
        "input_size": record.get("input_size") or config.dataset.image_size,
        "divisor": ARCHITECTURES[config.model.name].divisor.of(options),
        "threshold": 0.5,
        "threshold_tuned": tuned,
        "learned": (record.get("head") or {}).get("learned") or {},
    }


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A path for a new file or folder, which moves to ``path`` when the block has ended without an error.

    Raises UsageError where ``path`` exists with other content, or cannot be written.
    """
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=".segexp-", dir=path.absolute().parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): choose another -o") from error
    with beside as folder:
        made = Path(folder, path.name)
        yield made
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        if not path.exists():
            os.replace(made, path)
        elif _content(path) != _content(made):
            raise UsageError(f"{path} exists with other content and stays as it is: choose another -o, or remove it")


def _content(path: Path) -> dict[Path, bytes]:
    """The bytes of a file, or of every file in a folder."""
    return {file.relative_to(path): file.read_bytes() for file in (path, *path.rglob("*")) if file.is_file()}
