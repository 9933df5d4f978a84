"""Secondary analyses of runs that were compared (`--questions`). Adding one is adding a file here.

Every module of this package is imported, and puts its function into `QUESTIONS` with the decorator `question`.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from segexp.compare.result import Answer, Block
from segexp.errors import UsageError
from segexp.records.scores import SPLITS
from segexp.registry import Registry


class Question(Protocol):
    """arms: label -> directories of finished runs, one a seed, all of one data set under equal conditions.

    split: of `SPLITS`. What a run lacks is left out and counted in the answer's notes. Reads records only.
    """

    __name__: str

    def __call__(self, arms: Mapping[str, Sequence[Path]], split: str = "test") -> Answer: ...


QUESTIONS: Registry[Question] = Registry("question")


def question(function: Question) -> Question:
    """Decorator: put the function into the registry under its own name."""
    QUESTIONS.add(function.__name__, function)
    return function


def ask(names: Sequence[str], arms: Mapping[str, Sequence[Path]], split: str = "test") -> list[Answer]:
    """The answers to the questions called ``names``, in their order.

    arms: label -> directories of finished runs, of one data set under equal conditions; each run weighs the same.
    Raises UsageError where a question or the split is unknown, before anything is read.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split}: runs keep scores of {' and '.join(SPLITS)} only")
    return [asked(arms, split) for asked in [QUESTIONS.find(name) for name in names]]


def answers_of(block: Block, names: Sequence[str], split: str = "test") -> tuple[Answer, ...]:
    """The answers for the arms of a block; none where no run directories are at hand (collected tables)."""
    arms = {arm.arm: [Path(directory) for directory in arm.directories] for arm in block.ranking if arm.directories}
    return tuple(ask(names, arms, split)) if arms else ()


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
