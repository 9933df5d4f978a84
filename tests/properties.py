"""What property tests share: the same examples in every run, and predictions beside a target."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st

from segexp.activations.head import Prediction, make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS, HeadMode
from segexp.losses import IGNORE
from segexp.registry import Option


def repeatable(examples: int) -> Callable[[Any], Any]:
    """Settings of a test: so many examples, the same ones in every run, no clock, and no search for a smaller one."""
    phases = (Phase.explicit, Phase.generate)
    return settings(derandomize=True, database=None, deadline=None, max_examples=examples, phases=phases)


@dataclass(frozen=True)
class Scene:
    """Logits (N, K, H, W) in float64 and a target (N, H, W) with ignored pixels; first: the first foreground class."""

    activation: str
    mode: HeadMode
    logits: torch.Tensor
    target: torch.Tensor
    first: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def prediction(self) -> Prediction:
        return make_head(OUTPUT_ACTIVATIONS[self.activation], self.mode, first=self.first)(self.logits)

    def over(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Scene":
        """With the same change of logits and target, which have images as their first and pixels as their last axes."""
        return replace(self, logits=change(self.logits), target=change(self.target))

    def with_classes(self, order: Sequence[int]) -> "Scene":
        """With class order[c] in place of class c."""
        channels = [order.index(c) for c in range(len(order))]
        channels = channels if self.mode == "softmax" else [c - self.first for c in channels[self.first :]]
        target = torch.tensor([*order, *range(len(order), IGNORE + 1)])[self.target]
        weights = self.options.get("class_weights")
        weighted = {"class_weights": [weights[order.index(c)] for c in range(len(order))]} if weights else {}
        return replace(self, logits=self.logits[:, channels], target=target, options=self.options | weighted)


def options_drawn(options: Sequence[Option], num_classes: int) -> st.SearchStrategy[dict[str, Any]]:
    """A value within its range for each option."""
    drawn: dict[str, st.SearchStrategy[Any]] = {}
    for option in options:
        if option.name == "class_weights":
            weights = st.lists(st.sampled_from([0.25, 1.0, 2.0]), min_size=num_classes, max_size=num_classes)
            drawn[option.name] = st.none() | weights
        elif option.type is bool:
            drawn[option.name] = st.booleans()
        elif option.choices:
            drawn[option.name] = st.sampled_from(option.choices)
        else:
            near = [option.default, option.default + 1, option.default / 2, option.default + 0.25]
            drawn[option.name] = st.sampled_from([option.type(v) for v in near if option.range.holds(option.type(v))])
    return st.fixed_dictionaries(drawn)


@st.composite
def scenes(
    draw: st.DrawFn, pairs: Sequence[tuple[str, HeadMode]], options: Sequence[Option] = (), side: int = 6
) -> Scene:
    """Scenes of these activations and modes, of up to three images with up to five classes."""
    activation, mode = draw(st.sampled_from(pairs))
    num_classes = 2 if mode == "binary" else draw(st.integers(3, 5))
    first = 1 if mode == "binary" else draw(st.integers(0, 1))
    channels = {"binary": 1, "independent": num_classes - first, "softmax": num_classes}[mode]
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, side)), draw(st.integers(1, side)))
    # Single pixels and logits would take longer to draw than a loss to compute.
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    held = draw(st.lists(st.sampled_from([*range(num_classes), IGNORE]), min_size=1, max_size=num_classes + 1))
    target = torch.from_numpy(generator.choice(held, shape))
    normal = generator.normal(size=(shape[0], channels, *shape[1:]))
    logits = torch.from_numpy(normal * draw(st.sampled_from([0.1, 1.0, 5.0])))
    return Scene(activation, mode, logits, target, first, draw(options_drawn(options, num_classes)))
