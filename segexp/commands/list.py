"""`segexp list KIND`: what there is to choose from."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from segexp.activations.hidden import HIDDEN_ACTIVATIONS, NOT_MEASURED, HiddenActivation, measured_costs
from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS, OutputActivation
from segexp.commands import Parser
from segexp.config import alias_target
from segexp.errors import DONE, UsageError
from segexp.losses import LOSSES, Loss, fits
from segexp.models.architectures import ARCHITECTURES, Architecture, Pixels, buildable, swap_closes
from segexp.optim import OPTIMIZERS, SCHEDULERS
from segexp.registry import REQUIRED, Option, nearest

Rows = list[dict[str, Any]]


def _fits_somewhere(activation: OutputActivation, loss: Loss) -> bool:
    """Whether the pair trains under any head."""
    return any(fits(activation, loss, mode) for mode in ALL_MODES)


def _options(options: tuple[Option, ...]) -> list[str]:
    return [f"{o.name}={'|'.join(map(str, o.choices)) if o.choices else _shown(o.default)}" for o in options]


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    return "..." if default == REQUIRED else str(default)


def _activations() -> Rows:
    return [
        {
            "name": entry.name,
            "formula": entry.formula,
            "range": entry.range,
            "tail": entry.tail,
            "wrong_pixel_gradient": entry.wrong_pixel,
            "slope_at_zero": entry.slope_at_zero,
            "losses": [loss.name for loss in LOSSES.values() if _fits_somewhere(entry, loss)],
            "aliases": list(entry.aliases),
            "options": _options(entry.options),
            "warning": entry.warning,
            "source": entry.source,
        }
        for entry in OUTPUT_ACTIVATIONS.values()
    ]


def _losses() -> Rows:
    return [
        {
            "name": entry.name,
            "formula": entry.formula,
            "proper": entry.proper,
            "needs": entry.needs,
            "activations": [a.name for a in OUTPUT_ACTIVATIONS.values() if _fits_somewhere(a, entry)],
            "aliases": list(entry.aliases),
            "options": _options(entry.options),
            "side_effects": entry.side_effects,
            "source": entry.source,
        }
        for entry in LOSSES.values()
    ]


def _hidden_activations() -> Rows:
    return [_hidden_activation(entry) for entry in HIDDEN_ACTIVATIONS.values()]


def _hidden_activation(entry: HiddenActivation) -> dict[str, Any]:
    """One row; of an entry that is no one function, only the name, what it is and its options are known."""
    own = entry.make is not None
    cost = measured_costs().get(entry.name)
    return {
        "name": entry.name,
        "formula": entry.formula,
        "derivative": entry.derivative,
        "range": entry.range,
        "zero_centred": entry.zero_centred if own else None,
        "saturates": entry.saturates if own else None,
        "can_die": entry.can_die if own else None,
        "learnable": list(entry.learnable),
        "gain": entry.gain if own else None,
        "cost": (str(cost) if cost else NOT_MEASURED) if own else None,
        "forward_cost": cost.forward if cost else None,
        "backward_cost": cost.backward if cost else None,
        "saved_bytes": cost.saved_bytes if cost else None,
        "aliases": list(entry.aliases),
        "options": _options(entry.options),
        "source": entry.source,
    }


def _optimizers() -> Rows:
    return [
        {"name": e.name, "formula": e.formula, "options": _options(e.options), "source": e.source}
        for e in OPTIMIZERS.values()
    ]


def _schedulers() -> Rows:
    return [
        {"name": e.name, "formula": e.formula, "moves": e.moves, "options": _options(e.options), "source": e.source}
        for e in SCHEDULERS.values()
    ]


def _datasets() -> Rows:
    from segexp.config.presets import configs_dir, preset_names, preset_values
    from segexp.data import adapters

    rows = []
    for name in preset_names("dataset"):
        values = preset_values(configs_dir() / "dataset" / f"{name}.yaml")
        adapter = adapters().get(values.get("adapter", ""))
        options = [f"{k}={v}" for k, v in values.items() if k not in ("adapter", "name", "defaults")]
        rows.append({"name": name, "what": adapter.summary if adapter else "", "options": options})
    return rows


def _presets(group: str) -> Rows:
    from segexp.config.presets import configs_dir, preset_names, preset_values

    rows = []
    for name in preset_names(group):
        values = preset_values(configs_dir() / group / f"{name}.yaml")
        rows.append({"name": name, "options": [f"{k}={v}" for k, v in values.items() if k not in ("name", "defaults")]})
    return rows


_REPEATS = ("dataset", "split.fold", "seed")
"""What is swept to repeat an arm, and not to compare it with another."""


def _studies() -> Rows:
    from segexp.config.presets import preset_names, study_purpose, study_sweep, study_variants

    rows = []
    for name in preset_names("study"):
        swept = study_sweep(name)
        arms = math.prod(len(values) for key, values in swept.items() if key not in _REPEATS)
        if {"activation", "loss"} <= set(swept):
            refused = _refused_pairs(swept["activation"], swept["loss"])
            arms -= arms * refused // (len(swept["activation"]) * len(swept["loss"]))
        budgets = []
        for budget in study_variants(name, "budget"):
            in_budget = study_sweep(name, budget=budget)
            runs = arms * math.prod(len(in_budget[key]) for key in _REPEATS if key in in_budget)
            budgets.append(f"{budget}: {runs} {'run' if runs == 1 else 'runs'}")
        rows.append(
            {
                "name": name,
                "purpose": study_purpose(name),
                "arms": arms,
                "budgets": budgets,
                "protocols": study_variants(name, "protocol"),
                "sweeps": [f"{key}={','.join(values)}" for key, values in swept.items()],
            }
        )
    return rows


def _refused_pairs(activations: list[str], losses: list[str]) -> int:
    """How many of all pairs (aliases allowed) cannot be trained where there are two classes."""
    of_activations = [OUTPUT_ACTIVATIONS[alias_target("activation", name)[0]] for name in activations]
    of_losses = [LOSSES[alias_target("loss", name)[0]] for name in losses]
    return sum(not fits(activation, loss, "binary") for activation in of_activations for loss in of_losses)


def _models() -> Rows:
    return [
        {
            "name": e.name,
            "summary": e.summary,
            "encoders": e.encoders,
            "divisor": _pixels(e.divisor, e),
            "min_size": _pixels(e.min_size, e),
            "options": _options(e.options),
            "source": e.source,
        }
        for e in ARCHITECTURES.values()
    ]


def _pixels(number: Pixels, entry: Architecture) -> str:
    value = str(number.of(entry.defaults))
    return value if value == number.text else f"{value} ({number.text})"


def _augmentations() -> Rows:
    return _presets("augment")


def _backbones() -> Rows:
    from segexp.models.architectures import encoder_names

    seen = buildable()
    names = [*encoder_names(), *(name for name in seen if name.startswith("tu-"))]
    return [
        {
            "name": name,
            "use": f"backbone.name={name}",
            "hidden_activations_replaced": swap_closes(name),
            "models": list(seen.get(name, ())),
        }
        for name in names
    ]


KINDS: dict[str, Callable[[], Rows]] = {
    "activations": _activations,
    "losses": _losses,
    "hidden_activations": _hidden_activations,
    "optimizers": _optimizers,
    "schedulers": _schedulers,
    "datasets": _datasets,
    "models": _models,
    "augmentations": _augmentations,
    "studies": _studies,
    "backbones": _backbones,
}
"""What can be listed. The plain table leaves out the long columns; --json and --markdown give all."""

BRIEF: dict[str, tuple[str, ...]] = {
    "activations": ("name", "formula", "range", "tail", "wrong_pixel_gradient", "slope_at_zero", "aliases"),
    "losses": ("name", "formula", "proper", "needs", "side_effects", "source"),
    "hidden_activations": ("name", "formula", "range", "zero_centred", "saturates", "can_die", "gain", "cost"),
    "models": ("name", "summary", "encoders", "divisor", "min_size"),
    "studies": ("name", "purpose", "arms", "budgets", "protocols"),
}
"""Columns of the plain table where not all are shown."""


def listed(kind: str) -> Rows:
    """Rows of one kind."""
    return KINDS[kind]()


def parser() -> Parser:
    parser = Parser("list", f"kinds: {', '.join(KINDS)}")
    parser.add_argument("kind", nargs="?", metavar="KIND", complete=KINDS, help="activations, losses, datasets ...")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all facts, as JSON")
    form.add_argument("--markdown", action="store_true", help="all facts, as a Markdown table")
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp list KIND`."""
    options = parser().parse_args(list(words))

    from segexp.records.formatting import json_table, markdown_table, text_table

    if options.kind is None:
        raise UsageError(f"list what? one of: {', '.join(KINDS)}")
    if options.kind not in KINDS:
        raise UsageError(f"cannot list '{options.kind}'{nearest(options.kind, KINDS)}")
    rows = listed(options.kind)
    if options.json:
        print(json_table(rows))
    elif options.markdown:
        print(markdown_table(rows))
    else:
        brief = BRIEF.get(options.kind)
        print(text_table([{name: row[name] for name in brief} for row in rows] if brief else rows, width=140))
    return DONE
