"""Checks of networks, data sets, scores, optimizers and schedulers (`segexp.running.entry_check`), and all by kind."""

import contextlib
import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from segexp.config.compose import compose, hydra_session
from segexp.data.image_set import Adapter
from segexp.errors import UsageError, first_line
from segexp.evaluation.own import own_scores
from segexp.models.architectures import NO_ENCODER, Architecture, BackboneConfig, InitConfig, common_size
from segexp.models.build import build_with_hidden
from segexp.optim import Entry
from segexp.records.scores import Score
from segexp.running.data_check import check_data
from segexp.running.entry_check import Checks, NoteError, WrongError, defaults_of, hidden
from segexp.running.head_check import loss, output


def network(entry: Architecture) -> Checks:
    """Checks of an architecture, with an encoder that it supports."""
    options = defaults_of(entry.options)
    names = ("resnet18", "tu-vit_tiny_patch16_224", "tu-convnext_atto")
    backbone = next(name for name in names if not entry.unsupported(name, options)) if entry.encoder else NO_ENCODER
    least = common_size(entry.name, options, backbone)

    def built(hidden_name: str, size: int) -> str:
        """Logits of the images' size in both modes, activations replaced, finite gradients; can be copied."""
        model, encoder, init = (entry.name, options), BackboneConfig(backbone, None), InitConfig("auto", 0.0)
        chosen = (hidden_name, {"scope": "both"})
        made = build_with_hidden(model, encoder, chosen, init, in_channels=3, out_channels=2, size=size, seed=0)
        copied, images = copy.deepcopy(made.network), torch.randn(2, 3, size, size)
        for training in (False, True):
            logits = copied.train(training)(images)
            if tuple(logits.shape) != (2, 2, size, size):
                raise WrongError(f"logits of images of {size} px have the shape {tuple(logits.shape)}")
        gradients = torch.autograd.grad(logits.square().mean(), list(copied.parameters()), allow_unused=True)
        if not all(g is None or g.isfinite().all() for g in gradients):
            raise WrongError("the gradients of a training step are not finite")
        if not made.sites and hidden_name == "native":
            raise NoteError(f"{size} px; no activation is found, so hidden_activation has no effect")
        return f"{size} px; {made.report.replaced} of {len(made.sites)} activations replaced"

    def another() -> str:
        """At the next size; where that fails, the divisor is measured."""
        size = least + entry.divisor.of(options)
        try:
            return built("arctan", size)
        except Exception as error:
            for divisor in (2, 4, 8, 16, 32, 64):
                with contextlib.suppress(Exception):
                    built("arctan", least + divisor)
                    break
            else:
                raise
            wrong = f"processes images of {least} and {least + divisor} px, but not of {size} px"
            raise WrongError(f"{wrong} ({first_line(error)}): state divisor={divisor}") from error

    yield "call", lambda: built("native", least)
    yield "another activation", another


def dataset(entry: Adapter) -> Checks:
    """Checks of a data set with its default options, as `segexp data check`; read twice, it is the same."""

    def usable() -> str:
        with hydra_session() as extra:
            try:
                config = compose([f"dataset={entry.name}"], extra)
            except UsageError as error:
                cure = f"give its options to `segexp data check {entry.name} --plugin FILE KEY=VALUE`"
                raise NoteError(f"not checked without options ({error}): {cure}") from error
        first = check_data(config)
        if problems := [*first.bad.values(), *first.refused]:
            raise WrongError("; ".join(problems[:3]))
        if first.image_set.content != check_data(config).image_set.content:
            raise WrongError("gives other images each time it is opened: augmentation belongs to augment=...")
        parts = ", ".join(f"{len(indices)} {part}" for part, indices in first.split.items())
        shown = f"{len(first.image_set.image_ids)} images ({parts}), {first.image_set.num_classes} classes"
        if first.warnings:
            raise NoteError(f"{shown}; {'; '.join(first.warnings[:2])}")
        return shown

    yield "data", usable


def score(entry: Score) -> Checks:
    """Checks of a score: it ranks equal masks above disjoint ones, and gives equal values for equal masks."""

    def direction() -> str:
        masks_2NFHW = np.zeros((2, 2, 1, 16, 16), dtype=bool)
        masks_2NFHW[:, :, :, 2:8, 2:8] = True
        masks_2NFHW[0, 1] = np.roll(masks_2NFHW[0, 1], 7, axis=-1)
        valid_NHW, p_NFHW = np.ones((2, 16, 16), dtype=bool), masks_2NFHW[0].astype(np.float32)

        def values() -> Any:
            names = ["equal", "disjoint"]
            return np.ravel(own_scores([entry], names, masks_2NFHW, valid_NHW, p_NFHW)[entry.name])

        equal, disjoint = first = values()
        if not np.array_equal(first, values(), equal_nan=True):
            raise WrongError("equal masks give different values in two calls")
        shown = f"{equal:.4g} for equal masks, {disjoint:.4g} for disjoint ones"
        if equal < disjoint if entry.higher_is_better else equal > disjoint:
            raise WrongError(f"stated higher_is_better={entry.higher_is_better}: {shown}")
        return shown

    yield "direction", direction


def eight_steps(
    entry: Entry, options: Mapping[str, Any], scheduled: Sequence[int] = ()
) -> tuple[list[float], list[float], Any]:
    """Value and learning rate of each of eight steps of an optimizer, or of a scheduler, on a parabola, and what the
    entry made. scheduled: total_steps and steps_per_epoch of a scheduler. Raises WrongError if that is no optimizer or
    scheduler of torch."""
    weights = [torch.nn.Parameter(torch.tensor([2.0, -1.0])), torch.nn.Parameter(torch.tensor([1.0]))]
    # Learned parameters of activations are a group without weight decay.
    groups: list[Any] = [{"params": weights[:1]}, {"params": weights[1:], "weight_decay": 0.0}]
    moving: Any = torch.optim.SGD(groups, lr=0.1) if scheduled else entry.function(groups, **options)
    made = entry.function(moving, *scheduled, **options) if scheduled else moving
    needed = ("step", "state_dict", "load_state_dict", *([] if scheduled else ["zero_grad", "param_groups"]))
    if lacking := [name for name in needed if not hasattr(made, name)]:
        kind = "scheduler" if scheduled else "optimizer"
        raise WrongError(f"returns {type(made).__name__}, which has no {lacking[0]}: return a torch {kind}")
    # Torch's own, but for ReduceLROnPlateau, would take the score for the number of an epoch.
    if scheduled and entry.moves == "validation" and next(iter(inspect.signature(made.step).parameters), "") == "epoch":
        wrong = f"returns {type(made).__name__}, which takes no score, but states moves='validation'"
        raise WrongError(f"{wrong}: leave that out, and count epochs as steps_per_epoch steps")
    rates, values = [], []
    for step in range(8):
        value = weights[0].square().sum() + weights[1].square().sum()
        values.append(value.item())
        rates.append(float(moving.param_groups[0]["lr"]))
        moving.zero_grad()
        value.backward()
        moving.step()
        if scheduled and entry.moves == "step":
            made.step()
        elif scheduled and step % 4 == 3:
            made.step(0.5)
    return values, rates, made


def optimizer(entry: Entry, scheduled: bool = False) -> Checks:
    """Checks of an optimizer, or of a scheduler (scheduled) of eight steps."""
    options = defaults_of(entry.options)

    def steps() -> str:
        (values, rates, made), (*_, fresh) = (
            eight_steps(entry, options, (8, 4) if scheduled else ()) for _ in range(2)
        )
        if not values[-1] < values[0] < math.inf or not all(0 <= rate < math.inf for rate in rates):
            raise WrongError(f"a parabola goes from {values[0]:.4g} to {values[-1]:.4g} with learning rates {rates}")
        fresh.load_state_dict(copy.deepcopy(made.state_dict()))
        return f"learning rate {rates[0]:.3g} to {rates[-1]:.3g}; the state can be stored and restored"

    yield "eight steps", steps


scheduler = functools.partial(optimizer, scheduled=True)


CHECKS: dict[str, Callable[[Any], Checks]] = {
    **{"hidden_activation": hidden, "activation": output, "loss": loss, "model": network},
    **{"dataset": dataset, "metrics.scores": score, "optimizer": optimizer, "scheduler": scheduler},
}
"""Name of a registry -> the checks of an entry of it."""
