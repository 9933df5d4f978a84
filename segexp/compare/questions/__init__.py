"""Second questions on runs that were compared, a file each. Adding one is adding one decorated function."""

from segexp.compare.questions.boundary import boundary
from segexp.compare.questions.calibration import calibration
from segexp.compare.questions.convergence import convergence
from segexp.compare.questions.cost import cost
from segexp.compare.questions.diagnostics import diagnostics
from segexp.compare.questions.entry import QUESTIONS, Question, answers_of, ask, question
from segexp.compare.questions.objects import objects
from segexp.compare.questions.threshold import threshold

__all__ = [
    "QUESTIONS",
    "Question",
    "answers_of",
    "ask",
    "boundary",
    "calibration",
    "convergence",
    "cost",
    "diagnostics",
    "objects",
    "question",
    "threshold",
]
