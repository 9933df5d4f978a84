"""The user's own parts: decorators for a file that ``segexp --plugin FILE`` loads (docs/plugins.md).

    from typing import Annotated
    from segexp.plugin import Range, hidden_activation, output_activation

    @hidden_activation(range="[0, inf)")
    def cubed_relu(x):
        return x.relu() ** 3

    @output_activation(gives="probability")
    def algebraic(x, *, power: Annotated[float, Range(1)] = 2.0):
        return 0.5 + x / (2 * (1 + abs(x) ** power) ** (1 / power))

The name of the entry is that of the function or class (my_relu for MyRelu), or ``name="..."``. Keyword-only parameters
become typed options: ``activation=algebraic activation.power=4``. All facts are optional; what is not stated shows as
"not stated", and `segexp check-plugin FILE` tests what is.
"""

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segexp.activations.cdf import inexact_tails, log_odds_of_cdf, log_odds_of_pair, measured_slope
from segexp.activations.hidden import HIDDEN_ACTIVATIONS, SWAP_OPTIONS, HiddenActivation, pointwise
from segexp.activations.output import ALL_MODES, HEAD_OPTIONS, OUTPUT_ACTIVATIONS, OutputActivation
from segexp.config import CODE_GROUPS, choice_config, members_of
from segexp.data import adapters
from segexp.data.image_set import ADAPTERS, Adapter, DatasetConfig, ImageError, ImageSet, Pair
from segexp.data.pairs import image_set_of
from segexp.errors import UsageError, first_line, line_in
from segexp.losses import LOSSES, Loss, log_odds_of, mean_over, reference_planes, weights_of_classes
from segexp.models.architectures import ARCHITECTURES, Architecture, pixels
from segexp.optim import OPTIMIZERS, SCHEDULERS, Entry
from segexp.records.scores import OWN, OWN_SCORES, PIXELS, POINTS, Score, facts_of, recorded_scores
from segexp.registry import NOT_NEGATIVE, NOT_STATED, POSITIVE, REQUIRED, Option, Range, Registry, options_of
from segexp.registry.declared import check_facts, check_options, check_parameters
from segexp.registry.plugins import CALL_SITE, COMMON, entry_name

__all__ = ["architecture", "dataset", "hidden_activation", "loss"]
__all__ += ["optimizer", "output_activation", "scheduler", "score"]
__all__ += ["NOT_NEGATIVE", "POSITIVE", "DatasetConfig", "ImageError", "ImageSet", "Pair", "Range"]
__all__ += ["log_odds_of", "mean_over", "pointwise", "reference_planes", "weights_of_classes"]

adapters()  # read now, so that the built-in ones do not count as a plugin's


def _decorator(register: Callable[..., None]) -> Callable[..., Any]:
    """``register(target, **facts)`` as a decorator, with or without facts in parentheses."""

    @functools.wraps(register)
    def decorator(target: Any = None, /, **facts: Any) -> Any:
        if target is None:
            return functools.partial(decorator, **facts)
        if not callable(target):
            raise UsageError(f"write @{register.__name__}(name={target!r})")
        register(target, **facts)
        return target

    return decorator


def _named(target: Any, name: str) -> str:
    found = name or entry_name(target.__name__)
    if not found.isidentifier():
        raise UsageError(f"{found!r} is no name: use letters, digits and _")
    return found


def _summary(target: Any) -> str:
    """The first line of the docstring, else the name."""
    return (target.__doc__ or target.__name__).strip().splitlines()[0]


def _file(target: Any) -> str:
    """The file that a function or class was written in."""
    return getattr(sys.modules.get(target.__module__), "__file__", None) or str(target.__module__)


def _add(
    registry: Registry[Any], kind: type, target: Any, facts: dict[str, Any], shared: Any = (), **made: Any
) -> None:
    """Check what the entry declares, and register it. facts: stated and usual ones. shared: options of every entry."""
    usual = {"source": f"plugin {_file(target)}", **dict.fromkeys(("formula", "summary"), _summary(target))}
    fields = {field.name for field in dataclasses.fields(kind)}
    facts = {fact: value for fact, value in usual.items() if fact in fields} | facts
    if (aliases := facts.get("aliases")) is not None:
        if not isinstance(aliases, tuple):
            raise UsageError(f"{target.__name__}: aliases={aliases!r} must be a tuple of names")
        facts["aliases"] = dict.fromkeys(aliases, ALL_MODES)
    check_facts(kind, target.__name__, facts, made)
    own = [option for option in made.get("options", ()) if option not in shared]
    check_options(target.__name__, own, {"name", *(option.name for option in shared), *_TAKEN.get(registry.group, ())})
    registry.add(made["name"].removeprefix(OWN) if kind is Score else made["name"], kind(**made | facts))
    if registry.group in CODE_GROUPS:
        try:
            OmegaConf.structured(choice_config(registry.group, made["name"]))
        except OmegaConfBaseException as error:
            what = f"{target.__name__}: the option {error.full_key or error.key} cannot be set on a command line"
            raise UsageError(f"{what} ({first_line(error)}): use bool, int, float, str, or a list of them") from error


_TAKEN = {"loss": ("weight",)}
"""Further names that no option of an entry may have: a term of loss=sum has a weight."""


@_decorator
def hidden_activation(target: Any, /, *, name: str = "", **facts: Any) -> None:
    """Registers a hidden activation: a function of a tensor, a class of modules, or a function that makes a module.

    A function with a required positional parameter is f(x), applied to a tensor of any shape in any floating type; one
    without makes the module. Parameters ``channels`` and ``channel_dim`` of a class or of a function that makes modules
    get the number of channels of the call site and their dimension: 1, or -1 for tokens and (N, H, W, C). Facts: those
    of `segexp.activations.hidden.HiddenActivation`, ``name`` and ``aliases``; ``learnable`` names options of f(x) that
    are the initial values of learned parameters, one per call site.
    """
    of_tensor = not inspect.isclass(target) and _takes_tensor(target, CALL_SITE)
    check_parameters(target, ("x",) if of_tensor else (), () if of_tensor else CALL_SITE)
    options = options_of(target, () if of_tensor else CALL_SITE)
    make = target
    if of_tensor:
        learnable = facts.get("learnable", ())
        numbers = [o.name for o in options if o.type is float and not hasattr(torch.nn.Module(), o.name)]
        if wrong := [key for key in learnable if key not in numbers]:
            what = "is no option of type float, or has the name of an attribute of torch modules"
            raise UsageError(f"{target.__name__}: learnable={wrong[0]!r} {what}")

        def make(**given: Any) -> torch.nn.Module:
            learned = {key: given.pop(key) for key in learnable}
            return pointwise(functools.partial(target, **given), **learned)

    made = {"name": _named(target, name), "make": make, "options": (*SWAP_OPTIONS, *options)}
    facts = dict.fromkeys(("derivative", "range"), NOT_STATED) | facts
    _add(HIDDEN_ACTIVATIONS, HiddenActivation, target, facts, SWAP_OPTIONS, **made)


def _takes_tensor(function: Callable[..., Any], passed: tuple[str, ...] = ()) -> bool:
    """Whether the function has a required positional parameter, other than ``passed`` ones."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind in positional and p.default is p.empty and p.name not in passed for p in parameters)


Form = Literal["log_odds", "probability", "log_probabilities"]


@_decorator
def output_activation(
    target: Any, /, *, gives: Form = "log_odds", symmetric: bool = False, name: str = "", **facts: Any
) -> None:
    """Registers an output activation, a function of the logits x (float32 or float64, any shape).

    gives: "log_odds", ln F(x) - ln(1 - F(x)), the form of the built-in ones; "log_probabilities", the pair ln F(x) and
    ln(1 - F(x)); "probability", F(x) itself, whose far tails are then a straight line in the log-odds (a warning in the
    record says so); with ``symmetric``, F(-x) = 1 - F(x), they reach much further. Facts: those of
    `segexp.activations.output.OutputActivation`, ``name`` and ``aliases``; F'(0) is measured where it is not stated.
    """
    check_parameters(target, ("x",))
    found, options = _named(target, name), options_of(target)
    stated: dict[str, Any] = {"tail": NOT_STATED, "wrong_pixel": NOT_STATED, "slope_at_zero": None}
    log_odds = target
    if gives == "probability":
        log_odds, stated["warning"] = log_odds_of_cdf(target, symmetric=symmetric), inexact_tails(found, symmetric)
    elif gives == "log_probabilities":
        log_odds = log_odds_of_pair(target)
    elif gives != "log_odds":
        raise UsageError(f"gives={gives!r} is none of {', '.join(get_args(Form))}")
    if symmetric and gives != "probability":
        raise UsageError(f"symmetric says how F(x) is continued: it has no meaning with gives={gives!r}")
    if not facts.get("per_batch") and ("slope_at_zero" not in facts or options):
        stated["slope_of_options"] = functools.partial(measured_slope, log_odds)
    made = {"name": found, "log_odds": log_odds, "options": (*HEAD_OPTIONS, *options)}
    _add(OUTPUT_ACTIVATIONS, OutputActivation, target, stated | facts, HEAD_OPTIONS, **made)


@_decorator
def loss(target: Any, /, *, name: str = "", **facts: Any) -> None:
    """Registers a loss, a function (prediction, target, *, options) -> scalar tensor.

    See `segexp.activations.head.Prediction`, and `reference_planes` for the target. needs: "log_odds" (default; also
    for probabilities), or "values". Facts: those of `segexp.losses.Loss`, ``name`` and ``aliases``.
    """
    check_parameters(target, ("prediction", "target"), ("maps",))
    made = {"name": _named(target, name), "function": target, "options": options_of(target)}
    _add(LOSSES, Loss, target, {"side_effects": NOT_STATED} | facts, **made)


@_decorator
def architecture(
    target: Any, /, *, name: str = "", divisor: int = 1, min_size: int | None = None, **facts: Any
) -> None:
    """Registers a network: a class of modules, or a function that returns one, images_NCHW -> logits_NKHW.

    Parameters ``in_channels`` and ``classes`` (K, the number of logits of a pixel) get the numbers of the run,
    ``encoder_name`` and ``encoder_weights`` (None or "imagenet") those of ``backbone``; without them the network has no
    encoder, and ``backbone`` no effect. Weights are drawn from torch's generator, which segexp seeds. A child
    ``encoder`` is what ``hidden_activation.scope`` and ``backbone.weights`` mean. Facts: ``name``, ``summary``,
    ``source``, ``divisor`` (the sides of an image in pixels must be multiples of it; default 1) and ``min_size``.
    """
    found, parameters = _named(target, name), inspect.signature(target).parameters.values()
    asked = [p.name for p in parameters if p.name in COMMON]
    if plain := [p.name for p in parameters if p.name not in COMMON and p.kind is not p.KEYWORD_ONLY]:
        wrong = f"{target.__name__}: {plain[0]} is none of {', '.join(COMMON)}"
        raise UsageError(f"{wrong}: write it after a *, as an option")
    encoder = "encoder_name" in asked
    if encoder != ("encoder_weights" in asked):
        raise UsageError(f"{target.__name__}: encoder_name and encoder_weights come together")

    def build(common: dict[str, Any], **options: Any) -> torch.nn.Module:
        with _running(target, f"model={found} cannot be built"):
            network = target(**{key: common[key] for key in asked}, **options)
        if not isinstance(network, torch.nn.Module):
            raise UsageError(f"model={found}: {target.__name__} returns {type(network).__name__}, not a torch module")
        if taken := [word for word in ("swap", "built_for", "logits_from") if hasattr(network, word)]:
            raise UsageError(f"model={found}: segexp needs the attribute {taken[0]} of the network: rename yours")
        return network

    made = {"name": found, "function": build, "options": options_of(target, COMMON), "encoder": encoder, "own": True}
    made |= {"unsupported": lambda encoder, options: None, "divisor": pixels(divisor)}
    made["min_size"] = None if min_size is None else pixels(min_size)
    _add(
        ARCHITECTURES, Architecture, target, {"encoders": "as the network says" if encoder else "none"} | facts, **made
    )


USUAL = {"image_size": 256, "fit": "resize", "surface_tolerance": 2.0, "spacing": None}
"""Options of a data set of the user's own where neither decorator nor command line says more."""


@_decorator
def dataset(target: Any, /, *, name: str = "", config: type | None = None, **facts: Any) -> None:
    """Registers a data set: a function that returns pairs (image, mask), or one that opens them in a way of its own.

    Pairs are any object with len() and [i] (a torch Dataset, a list), or are yielded, and then read into memory. A pair
    may go on with a name and a group (patient): see `segexp.data.pairs.image_set_of` for images and masks. With
    ``config=``, a dataclass that extends `DatasetConfig`, the function takes an instance of it and returns an
    `ImageSet`, as the adapters in segexp/data do. Keyword-only parameters, or the fields of the dataclass, are options:
    ``dataset=NAME dataset.OPTION=VALUE``. Facts: ``name``, and the values of options of every data set, such as
    ``num_classes``, ``image_size`` and ``class_names`` (fields of `DatasetConfig`), which the command line may change.
    """
    found = _named(target, name)
    if found in members_of("dataset"):
        raise UsageError(f"dataset={found} exists already: give yours another name")
    where = f"dataset={found} of {Path(_file(target)).name}"
    options = options_of(target) if config is None else ()
    kind: Any = config or _config_of(target, found, options)
    if not issubclass(kind, DatasetConfig):
        raise UsageError(f"config={kind.__name__} must be a dataclass that extends DatasetConfig")
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    if unknown := facts.keys() - defaults:
        raise UsageError(f"{min(unknown)} is neither a fact nor an option of a data set")
    usual: dict[str, Any] = {"adapter": found, "name": found, **USUAL, **{o.name: o.default for o in options}}
    preset = kind(**({key: value for key, value in usual.items() if defaults.get(key) is REQUIRED} | facts))
    try:
        OmegaConf.structured(preset)
    except OmegaConfBaseException as error:
        raise UsageError(f"{target.__name__}: {first_line(error)}") from error

    def opened(given: DatasetConfig) -> ImageSet:
        with _running(target, f"dataset={found} cannot be opened"):
            result = target(given) if config else target(**{o.name: getattr(given, o.name) for o in options})
        if not config:
            return image_set_of(result, given, where, functools.partial(_running, target))
        if not isinstance(result, ImageSet):
            raise UsageError(f"{where} returns {type(result).__name__}, not an ImageSet")
        return result

    ADAPTERS.add(found, Adapter(found, kind, opened, _summary(target), preset=preset))


def _config_of(target: Any, name: str, options: Sequence[Option]) -> type:
    """The dataclass with the options of a function that returns pairs."""
    if _takes_tensor(target):
        raise UsageError(f"{target.__name__}: write its parameters after a *, as options, or give config=")
    common = {field.name for field in dataclasses.fields(DatasetConfig)}
    if taken := [option.name for option in options if option.name in common]:
        raise UsageError(f"{target.__name__}: every data set has an option {taken[0]}: give yours another name")
    fields = [(o.name, Annotated[o.type, o.range, o.choices], REQUIRED) for o in options]
    return dataclasses.make_dataclass(f"{name}_config", fields, bases=(DatasetConfig,))


@contextmanager
def _running(target: Any, what: str) -> Iterator[None]:
    """Exceptions of the user's function in this block become a UsageError with the line of his file."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        file = _file(target)
        where = line_in(error, [file]) or file
        raise UsageError(f"{where}: {what}: {type(error).__name__}: {first_line(error)}") from error


@_decorator
def optimizer(target: Any, /, *, name: str = "", **facts: Any) -> None:
    """Registers an optimizer, a function (parameters, *, lr, options) -> torch.optim.Optimizer.

    parameters: a list of parameter groups, ``{"params": [...]}``. Facts: ``name``, ``formula``, ``source``."""
    if all(option.name != "lr" for option in options_of(target)):
        raise UsageError("an optimizer needs the option lr, a keyword-only float with a default")
    _add_optim(OPTIMIZERS, ("parameters",), target, name, facts)


@_decorator
def scheduler(target: Any, /, *, name: str = "", **facts: Any) -> None:
    """Registers a scheduler, a function (optimizer, total_steps, steps_per_epoch, *, options) -> a scheduler of torch.

    Facts: ``name``, ``formula``, ``source``, and ``moves``: "step" (default), or "validation" for one whose ``step``
    takes the validation score.
    """
    _add_optim(SCHEDULERS, ("optimizer", "total_steps", "steps_per_epoch"), target, name, facts)


def _add_optim(
    registry: Registry[Entry], takes: tuple[str, ...], target: Any, name: str, facts: dict[str, Any]
) -> None:
    check_parameters(target, takes)
    _add(registry, Entry, target, facts, name=_named(target, name), function=target, options=options_of(target))


@_decorator
def score(target: Any, /, *, name: str = "", **facts: Any) -> None:
    """Registers a score, a function (predicted_HW, reference_HW, valid_HW, probability_HW) -> float.

    It is called for each image and foreground class, at scoring resolution, with NumPy arrays: boolean masks without
    ignored pixels, the pixels that count, and the probability of the class (float32), None where the head has none. NaN
    means undefined. ``metrics.scores=[NAME]`` computes it: the column score_NAME of images.csv and summary.csv, and
    ``compare --metric NAME``. Facts: ``name``, ``title``, ``unit`` ("points" for shares, which print times 100,
    "px", or ""), ``highest`` (1 for points, else infinite), ``higher_is_better`` (default), ``averaged`` over images
    whose reference holds the class ("reference", default), "all", or as metrics.empty_policy says ("empty_policy"), and
    ``negligible`` (half-width of differences that do not matter, in its own unit).
    """
    check_parameters(target, ("predicted", "reference", "valid", "probability"))
    found = _named(target, name)
    stated: dict[str, Any] = {"title": found.replace("_", " "), "unit": ""} | facts
    stated["unit"] = PIXELS if stated["unit"] == "px" else stated["unit"]
    stated.setdefault("highest", 1.0 if stated["unit"] == POINTS else math.inf)

    def value(*planes: Any) -> float:
        with _running(target, f"the score {found} cannot be computed"):
            return float(target(*planes))

    made = {"name": OWN + found, "function": value, "per_image": True}
    _add(OWN_SCORES, Score, target, stated, **made)
    try:
        recorded_scores(facts_of([found]))
    except ValueError:
        raise UsageError(f"{target.__name__}: title is text, unit 'points', 'px' or '', highest a number") from None
