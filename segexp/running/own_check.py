"""The first calls of a plugin's entries that a run uses, on small tensors: a mistake is found before training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from segexp.activations.head import learn_options, learned_options, make_head
from segexp.activations.hidden import make_hidden
from segexp.activations.output import OUTPUT_ACTIVATIONS, logit_channels, own_params
from segexp.config import Config, mode_of, params
from segexp.data import torch_seeded
from segexp.errors import UsageError, first_line
from segexp.evaluation.own import try_score
from segexp.losses import LOSSES, term_of
from segexp.records.scores import OWN_SCORES
from segexp.registry.plugins import in_plugin


def check_own(config: Config, plugins: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError where an entry fails, or gives what cannot be used. plugins: name -> entries, as "loss=mine"."""
    for entry in (entry for entries in plugins.values() for entry in entries):
        group, _, name = entry.partition("=")
        check = _CHECKS.get(group)
        if check is None:
            continue
        try:
            with torch_seeded(0, "check", entry):
                check(config, name)
        except UsageError:
            raise
        except Exception as error:
            if said := in_plugin(error):
                raise UsageError(said) from error
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(f"{entry} cannot be used ({what}): `segexp check-plugin` says more") from error


def _hidden(config: Config, name: str) -> None:
    module = make_hidden(name, params(config.hidden_activation), channels=64)
    if not isinstance(module, torch.nn.Module):
        what = f"returns {type(module).__name__}, not a torch module"
        raise UsageError(f"hidden_activation={name} {what}: a function of a tensor needs a parameter for it")
    x = torch.linspace(-2, 2, 512).view(2, 64, 2, 2)
    given = x.clone()
    y = module(given)
    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        shown = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
        raise UsageError(f"hidden_activation={name} gives {shown} for a tensor of shape {tuple(x.shape)}")
    if not torch.equal(given, x):
        cure = "compute a new tensor, as other layers need the input"
        raise UsageError(f"hidden_activation={name} changes its input in place: {cure}")


def _output(config: Config, name: str) -> None:
    entry, options = OUTPUT_ACTIVATIONS[name], own_params(params(config.activation))
    if entry.log_odds is None:
        return
    x = torch.linspace(-20, 20, 81, dtype=torch.float64)[:, None, None, None]
    form, function = getattr(entry.log_odds, "form", "log_odds"), entry.log_odds
    function = function if form == "log_odds" else function.__wrapped__  # type: ignore[attr-defined]
    found: Any = function(x, **options)
    pair = form == "log_probabilities"
    if isinstance(found, tuple) != pair:
        wrong = "gives one tensor, not ln F and ln(1 - F)" if pair else f"gives a pair, but states gives={form!r}"
        raise UsageError(f"activation={name} {wrong}: state what it gives")
    for one in found if pair else (found,):
        if not isinstance(one, torch.Tensor) or one.shape != x.shape:
            shape = tuple(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__
            raise UsageError(f"activation={name} gives {shape} for a tensor of shape {tuple(x.shape)}")
        inside, shown = bool(((one >= 0) & (one <= 1)).all()), f"{one.min():.4g} to {one.max():.4g}"
        if not one.isfinite().all():
            raise UsageError(f"activation={name} is not finite for |x| <= 20: it must be, with a finite gradient")
        if form == "probability" and not inside:
            raise UsageError(
                f"activation={name} gives F(x) from {shown}, not within 0 and 1: if it is log-odds, leave out gives"
            )
        if form == "log_odds" and inside and one[0] < 0.1 and one[-1] > 0.9:
            raise UsageError(
                f"activation={name} gives {shown}: these look like probabilities: state gives='probability'"
            )
    entry.log_odds(x, **options)


def _loss(config: Config, name: str) -> None:
    dataset, mode, options = config.dataset, mode_of(config), params(config.loss)
    if config.loss.name != name:  # a term of a sum
        options = term_of(options["terms"][name])[1]
    logits = torch.randn(2, logit_channels(dataset.num_classes, mode, dataset.first_class), 8, 8).requires_grad_()
    activation, chosen, holder = (
        OUTPUT_ACTIVATIONS[config.activation.name],
        params(config.activation),
        torch.nn.Module(),
    )
    learn_options(holder, activation, chosen)
    head = make_head(activation, mode, chosen, dataset.first_class, False, learned_options(holder))
    value = LOSSES[name].function(head(logits), torch.randint(dataset.num_classes, (2, 8, 8)), **options)
    if not isinstance(value, torch.Tensor) or value.dim():
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise UsageError(f"loss={name} gives {shown}: it must be a scalar tensor, as value.mean()")
    if not value.requires_grad or not value.isfinite():
        what = "is not finite for small logits" if value.requires_grad else "has no gradient: compute it from tensors"
        raise UsageError(f"loss={name} {what}")


_CHECKS: dict[str, Callable[[Config, str], None]] = {
    **{"hidden_activation": _hidden, "activation": _output, "loss": _loss},
    "metrics.scores": lambda config, name: try_score(OWN_SCORES[name]),
}
