"""Secondary analyses of runs that were compared (`compare --questions`). Adding one is adding one file here.

Every module of this package is imported. Its function, decorated with `question`, is the whole entry: name, titles and
what it computes from the records of the runs.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segexp.compare.questions.reading import Reading, drawn
from segexp.compare.result import Answer, Block, Panel
from segexp.errors import UsageError
from segexp.records.scores import SPLITS
from segexp.registry import Registry

Findings = tuple[Sequence[Mapping[str, Any]], Sequence[Panel], Sequence[str]]
"""Rows (one per arm, all with the same keys), panels and notes."""


@dataclass(frozen=True)
class Question:
    """A secondary analysis. titles: column of a row -> title with its unit, for columns that are not scores."""

    name: str
    title: str
    titles: Mapping[str, str]
    analyse: Callable[[Reading], Findings]

    def answer(self, arms: Mapping[str, Sequence[Path]], split: str) -> Answer:
        """The answer, with notes on runs that lack what is needed."""
        reading = Reading(arms, split)
        rows, panels, notes = self.analyse(reading)
        return Answer(self.name, self.title, tuple(rows), drawn(panels), (*notes, *reading.notes()), self.titles)


QUESTIONS: Registry[Question] = Registry("question")


def question(title: str, titles: Mapping[str, str]) -> Callable[[Callable[[Reading], Findings]], Question]:
    """Decorator: register a function under its own name."""

    def register(analyse: Callable[[Reading], Findings]) -> Question:
        name = analyse.__name__
        QUESTIONS.add(name, Question(name, title, titles, analyse))
        return QUESTIONS[name]

    return register


def ask(names: Sequence[str], arms: Mapping[str, Sequence[Path]], split: str = "test") -> list[Answer]:
    """The answers to the questions ``names``, in this order.

    arms: label -> directories of finished runs, of one data set under equal conditions; each run has the same weight.
    Raises UsageError for an unknown question or split, before anything is read.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split}: choose {' or '.join(SPLITS)}")
    return [asked.answer(arms, split) for asked in [QUESTIONS.find(name) for name in names]]


def answers_of(block: Block, names: Sequence[str], split: str = "test") -> tuple[Answer, ...]:
    """The answers for the arms of a block; none for collected tables, which have no run directories."""
    arms = {arm.arm: [Path(directory) for directory in arm.directories] for arm in block.ranking if arm.directories}
    return tuple(ask(names, arms, split)) if arms else ()


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
