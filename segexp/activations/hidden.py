"""Catalogue of hidden activations: the nonlinearities inside the network."""

from collections.abc import Callable
from dataclasses import dataclass

from segexp.catalogue import Catalogue, Option


@dataclass(frozen=True)
class HiddenActivation:
    """One entry. ``make`` builds a module; None leaves the architecture as its authors wrote it."""

    name: str
    make: Callable[..., object] | None
    formula: str
    options: tuple[Option, ...] = ()


HIDDEN_ACTIVATIONS: Catalogue[HiddenActivation] = Catalogue("hidden_activation")
HIDDEN_ACTIVATIONS.add("native", HiddenActivation("native", None, "whatever the architecture and encoder come with"))
