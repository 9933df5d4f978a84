"""What a report is made from: what compare found, and what its runs have left beside their scores."""

from dataclasses import dataclass

from segexp.compare.result import Answer, Block, Result
from segexp.report.samples import Samples, samples_of

FIRST = ("convergence", "calibration", "threshold")
"""Second questions in the order in which a reader asks them; the others follow."""


@dataclass(frozen=True)
class Study:
    """answers, samples: of each block of ``result``, in the same order."""

    result: Result
    answers: tuple[tuple[Answer, ...], ...]
    samples: tuple[Samples, ...]


def study_of(result: Result) -> Study:
    """Ask all second questions and pick sample predictions, in every block whose run directories are at hand."""
    from segexp.compare.questions import QUESTIONS, answers_of

    names = list(dict.fromkeys([*FIRST, *QUESTIONS]))
    return Study(
        result=result,
        answers=tuple(answers_of(block, names, result.split) for block in result.blocks),
        samples=tuple(samples_of(block.ranking, _reference(block), result.split) for block in result.blocks),
    )


def _reference(block: Block) -> str:
    return block.comparisons[0].reference if block.comparisons else ""
