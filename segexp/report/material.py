"""What a report is made from: what compare found, and what its runs have left beside their scores."""

from dataclasses import dataclass

from segexp.compare.result import Answer, Block, Result
from segexp.evaluation.scores import EmptyPolicy
from segexp.report.samples import Samples, samples_of

FIRST = ("convergence", "calibration", "threshold")
"""Second questions in the order in which a reader asks them; the others follow."""


@dataclass(frozen=True)
class Material:
    """answers, samples: of each block of ``result``, in the same order."""

    result: Result
    answers: tuple[tuple[Answer, ...], ...]
    samples: tuple[Samples, ...]


def material_of(result: Result) -> Material:
    """Ask all second questions and pick sample predictions, in every block whose run directories are at hand."""
    from segexp.compare.questions import QUESTIONS, answers_of

    names = list(dict.fromkeys([*FIRST, *QUESTIONS]))
    return Material(
        result=result,
        answers=tuple(answers_of(block, names, result.split) for block in result.blocks),
        samples=tuple(
            samples_of(block.ranking, _reference(block), result.split, _policy(block, result))
            for block in result.blocks
        ),
    )


def _policy(block: Block, result: Result) -> EmptyPolicy:
    """What a block's runs do with empty masks: the policy of all, or, where it differs, the condition of the block."""
    policy = block.conditions.get("metrics.empty_policy", result.empty_policy)
    return "both_empty_one" if policy == "both_empty_one" else "reference"


def _reference(block: Block) -> str:
    return block.comparisons[0].reference if block.comparisons else ""
