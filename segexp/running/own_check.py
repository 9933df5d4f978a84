"""The first calls of a plugin's entries that a run uses, on small tensors: a mistake is found before training."""

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from segexp.activations.head import learn_options, learned_options, make_head
from segexp.activations.hidden import make_hidden
from segexp.activations.output import OUTPUT_ACTIVATIONS, logit_channels, own_params
from segexp.config import Config, mode_of, params
from segexp.data import seeded
from segexp.errors import UsageError, first_line
from segexp.evaluation.own import try_score
from segexp.losses import IGNORE, LOSSES, map_functions, maps_of, term_of
from segexp.optim import OPTIMIZERS, SCHEDULERS
from segexp.records.scores import OWN_SCORES
from segexp.registry.plugins import LOADED, in_plugin
from segexp.running.entry_check import WrongError, line, same_shape, unchanged
from segexp.running.head_check import called, value_of
from segexp.running.part_check import eight_steps

log = logging.getLogger("segexp")


def check_own(config: Config, plugins: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError where an entry fails, or gives what cannot be used. plugins: name -> entries, as "loss=mine"."""
    for plugin, entry in ((plugin, entry) for plugin, entries in plugins.items() for entry in entries):
        group, _, name = entry.partition("=")
        given = LOADED[plugin].given
        try:
            with seeded(0, "check", entry):
                if check := _CHECKS.get(group):
                    check(config, name)
        except UsageError:
            raise
        except WrongError as wrong:
            raise UsageError(f"{entry} of {given} {wrong}") from None
        except Exception as error:
            what, more = f"{type(error).__name__}: {first_line(error)}", f"`segexp check-plugin {shlex.quote(given)}`"
            raise UsageError(in_plugin(error) or f"{entry} cannot be used ({what}): {more} says more") from error


def _hidden(config: Config, name: str) -> None:
    module = make_hidden(name, params(config.hidden_activation), channels=64)
    if not isinstance(module, torch.nn.Module):
        what = f"returns {type(module).__name__}, not a torch module"
        raise WrongError(f"{what}: a function of a tensor needs a parameter for it")
    x = torch.linspace(-2, 2, 512).view(2, 64, 2, 2)
    same_shape(unchanged(lambda: module(x), x), x)
    _connected(module, x)


def _connected(function: Callable[[torch.Tensor], Any], x: torch.Tensor) -> None:
    """Raise WrongError where no gradient leads from what the function gives, a tensor or several, to x."""
    leaf = x.clone().requires_grad_()
    given = function(leaf.clone())
    ends = [one.sum() for one in (given if isinstance(given, tuple) else (given,)) if one.requires_grad]
    if not ends or torch.autograd.grad(ends, leaf, allow_unused=True)[0] is None:
        raise WrongError("has no gradient: the result is detached from the input")


def _output(config: Config, name: str) -> None:
    log_odds, options = OUTPUT_ACTIVATIONS[name].log_odds, own_params(params(config.activation))
    if log_odds is None:
        return
    x, form = line(-20, 20, 81), getattr(log_odds, "form", "log_odds")
    found = called(OUTPUT_ACTIVATIONS[name], x, options)
    pair = form == "log_probabilities"
    if isinstance(found, tuple) != pair:
        wrong = "gives one tensor, not ln F and ln(1 - F)" if pair else f"gives a pair, but states gives={form!r}"
        raise WrongError(f"{wrong}: state what it gives")
    for one in found if pair else (found,):
        same_shape(one, x)
        inside, shown = bool(((one >= 0) & (one <= 1)).all()), f"{one.min():.4g} to {one.max():.4g}"
        if not one.isfinite().all():
            raise WrongError("is not finite for |x| <= 20: it must be, with a finite gradient")
        if form == "probability" and not inside:
            raise WrongError(f"gives F(x) from {shown}, not within 0 and 1: if it is log-odds, leave out gives")
        if form == "log_odds" and inside and one[0] < 0.1 and one[-1] > 0.9:
            raise WrongError(f"gives {shown}: these look like probabilities: state gives='probability'")
    _connected(lambda x: called(OUTPUT_ACTIVATIONS[name], x, options), x)
    phi = log_odds(x, **options)
    same_shape(phi, x)
    if not phi.isfinite().all():  # the only way left: the ends of a body that falls are not found
        raise WrongError("gives log-odds that are not finite for |x| <= 20: F must rise with x")


def _loss(config: Config, name: str) -> None:
    dataset, mode, options = config.dataset, mode_of(config), params(config.loss)
    if config.loss.name != name:  # a term of a sum
        options = term_of(options["terms"][name])[1]
    logits = torch.randn(2, logit_channels(dataset.num_classes, mode, dataset.first_class), 8, 8).requires_grad_()
    target = torch.randint(dataset.num_classes, (2, 8, 8))
    activation, chosen = OUTPUT_ACTIVATIONS[config.activation.name], params(config.activation)
    holder = torch.nn.Module()
    learn_options(holder, activation, chosen)
    head = make_head(activation, mode, chosen, dataset.first_class, False, learned_options(holder))
    functions, foreground = map_functions(name, options), range(dataset.first_class, dataset.num_classes)

    def value_for(target: torch.Tensor) -> torch.Tensor:
        maps = {"maps": maps_of(functions, target, foreground, dataset.overlapping)} if functions else {}
        return value_of(LOSSES[name], head(logits.clone()), target, **options, **maps)

    value = value_for(target)
    if not value.requires_grad:
        raise WrongError("has no gradient: compute it from tensors")
    if not value.isfinite():
        raise WrongError("is not finite for small logits")
    # It may change its input only where there are ignored pixels, or no foreground.
    for what, masks in (
        ("with ignored pixels", target.masked_fill(target == 0, IGNORE)),
        ("of ignored pixels alone", torch.full_like(target, IGNORE)),
        ("without foreground", torch.zeros_like(target)),
    ):
        try:
            value_for(masks)
        except WrongError:
            raise
        except Exception as error:  # the data of the run may have no such masks
            log.warning("loss=%s fails on masks %s: %s: %s", name, what, type(error).__name__, first_line(error))


def _scheduler(config: Config, name: str) -> None:
    """As in a run of epochs that are long enough for options that are numbers of steps."""
    steps = (1000 * config.trainer.epochs, 1000)
    eight_steps(SCHEDULERS[name], params(config.scheduler), steps)


_CHECKS: dict[str, Callable[[Config, str], Any]] = {
    **{"hidden_activation": _hidden, "activation": _output, "loss": _loss},
    "metrics.scores": lambda config, name: try_score(OWN_SCORES[name]),
    # Whether these options descend a parabola says nothing about the run.
    "optimizer": lambda config, name: eight_steps(OPTIMIZERS[name], params(config.optimizer)),
    "scheduler": _scheduler,
}
