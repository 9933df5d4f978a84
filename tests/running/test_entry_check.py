"""The entries of segexp pass the checks of `segexp check-plugin`, and the checks find what is wrong with others."""

import dataclasses
from typing import Any

import pytest
import torch

from segexp.activations.cdf import log_odds_of_cdf, log_odds_of_pair
from segexp.activations.hidden import HIDDEN_ACTIVATIONS
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.registry import NOT_STATED, REGISTRIES
from segexp.running.entry_check import Checks, checked, hidden
from segexp.running.head_check import output
from segexp.running.part_check import CHECKS

QUICK = ("arctan", "dice", "adamw", "plateau")
"""Entries that are checked by default, as are all hidden activations in tests/activations; the others are slow."""

OWN: list[Any] = [
    pytest.param(registry.group, entry, id=f"{registry.group}-{name}", marks=[pytest.mark.slow] * (name not in QUICK))
    for registry in REGISTRIES
    if registry.group in CHECKS.keys() - {"hidden_activation", "dataset", "metrics.scores"}
    for name, entry in registry.items()
    if name != "sum"
]


def outcomes(checks: Checks) -> dict[str, str]:
    """Check -> detail, of those that are not ok."""
    return {check.name: f"{check.result}: {check.detail}" for check in checked(checks) if check.result != "ok"}


@pytest.mark.parametrize(("group", "entry"), OWN)
def test_entries_of_segexp_pass(group: str, entry: Any) -> None:
    assert outcomes(CHECKS[group](entry)) == {}


@pytest.mark.slow
def test_log_odds_are_held_against_the_probabilities_that_the_user_wrote() -> None:
    def pair(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)

    def two(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pair(x)[0], pair(x + 0.1)[1]

    found = {}
    for name, phi in {
        "of F": log_odds_of_cdf(torch.sigmoid, symmetric=True),
        "of a pair": log_odds_of_pair(pair),
        "of no pair": log_odds_of_pair(two),
    }.items():
        entry = dataclasses.replace(OUTPUT_ACTIVATIONS["sigmoid"], log_odds=phi, inverse=None, linear=False)
        found[name] = set(outcomes(output(entry)))
    assert found == {"of F": set(), "of a pair": set(), "of no pair": {"log-odds of F", "slope_at_zero"}}


@pytest.mark.parametrize(("change", "failing"), [
    ({"gain": 1.3}, {"gain"}), ({"saturates": "right"}, {"saturates"}), ({"can_die": True}, {"can_die"}),
    ({"zero_centred": True}, {"zero_centred"}), ({"range": "[-0.2, inf)"}, {"range"}),
    ({"range": "[-0.17, 3]"}, {"range"}), ({"learnable": ("beta",)}, {"learnable"}),
])  # fmt: skip
def test_a_wrong_fact_fails_its_check(change: dict[str, Any], failing: set[str]) -> None:
    found = outcomes(hidden(dataclasses.replace(HIDDEN_ACTIVATIONS["gelu"], **change)))
    assert set(found) == failing
    assert all(text.startswith("failed") for text in found.values())


def test_what_is_not_stated_is_measured_and_noted() -> None:
    unknown = dataclasses.replace(HIDDEN_ACTIVATIONS["tanh"], range=NOT_STATED, zero_centred=False, saturates="")
    found = outcomes(hidden(unknown))
    assert {name: text.partition(":")[0] for name, text in found.items()} == {
        "range": "note", "zero_centred": "note", "saturates": "note",
    }  # fmt: skip
    assert "saturates='both'" in found["saturates"]
    assert "state range='[-1, 1]'" in found["range"]
