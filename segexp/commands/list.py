"""`segexp list KIND`: the entries of the registries, the presets and the encoders, with their facts.

Each kind imports what it lists, so that a list takes a tenth of a second.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.commands import Parser
from segexp.errors import DONE, UsageError
from segexp.records.formatting import json_table, markdown_table, text_table
from segexp.registry import REGISTRIES, REQUIRED, Option, nearest

if TYPE_CHECKING:
    from segexp.activations.output import OutputActivation
    from segexp.losses import Loss
    from segexp.models.architectures import Architecture, Pixels

Rows = list[dict[str, Any]]


def parser() -> Parser:
    parser = Parser("list", f"kinds: {', '.join(KINDS)}")
    parser.add_argument("kind", nargs="?", metavar="KIND", complete=KINDS, help="activations, losses, datasets ...")
    parser.add_argument("--sort", choices=SORTS, help="of hidden_activations: the cheapest, or the earliest, first")
    parser.add_argument("--family", metavar="NAME", complete=_families, help="of hidden_activations: only this family")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all columns, as JSON")
    form.add_argument("--markdown", action="store_true", help="all columns, as a Markdown table")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    if options.kind is None:
        raise UsageError(f"list what? one of: {', '.join(KINDS)}")
    if options.kind not in KINDS:
        raise UsageError(f"cannot list '{options.kind}'{nearest(options.kind, KINDS)}")
    rows = _chosen(options.kind, options.sort, options.family)
    if options.json:
        print(json_table(rows))
    elif options.markdown:
        print(markdown_table(rows))
    else:
        brief = BRIEF.get(options.kind) or tuple(name for name in rows[0] if name != "plugin")
        brief = (*brief, *(["plugin"] if "plugin" in rows[0] else []))
        print(text_table([{name: row[name] for name in brief} for row in rows], width=140))
    return DONE


SORTS = {"cost": "both_cost", "year": "year"}
"""What a list can be sorted by -> the column."""


def _families() -> list[str]:
    from segexp.activations.hidden import HIDDEN_ACTIVATIONS

    return list(dict.fromkeys(entry.family for entry in HIDDEN_ACTIVATIONS.values() if entry.family))


def _chosen(kind: str, sort: str | None, family: str | None) -> Rows:
    """Rows of a kind and family, sorted; those without the number come last. Raises UsageError."""
    rows = listed(kind)
    for option, value in (("--sort", sort), ("--family", family)):
        if value is not None and kind != "hidden_activations":
            usable = f"segexp list hidden_activations {option} {value}"
            raise UsageError(f"{option} {value}: {kind} have no such fact; hidden activations have: {usable}")
    if family is not None:
        if family not in _families():
            raise UsageError(f"--family {family}: no hidden activation is of it{nearest(family, _families())}")
        rows = [row for row in rows if row["family"] == family]
    if sort is not None:
        rows.sort(key=lambda row: math.inf if row[SORTS[sort]] is None else row[SORTS[sort]])
    return rows


def listed(kind: str) -> Rows:
    """Rows of one of `KINDS`, with the plugin that an entry comes from where any does."""
    rows = KINDS[kind]()
    registry = next((one for one in REGISTRIES if kind in (f"{one.group}s", f"{one.group}es")), None)
    if registry is not None and registry.origins:
        rows = [row | {"plugin": registry.origins.get(row["name"], "")} for row in rows]
    return rows


def _row(entry: Any, columns: str, **computed: Any) -> dict[str, Any]:
    """One row: ``computed`` values, aliases and options as lists, and attributes of the entry."""
    row = {name: computed.get(name, getattr(entry, name, None)) for name in columns.split()}
    row |= {name: list(getattr(entry, name)) for name in ("aliases", "learnable") if name in row}
    return row | {"options": [_option(option) for option in entry.options]}


def _option(option: Option) -> str:
    if option.choices:
        return f"{option.name}={'|'.join(map(str, option.choices))}"
    default = "..." if option.default == REQUIRED else option.default
    return f"{option.name}={'null' if default is None else default}"


def _fits_somewhere(activation: "OutputActivation", loss: "Loss") -> bool:
    """Whether the pair trains under any head."""
    from segexp.activations.output import ALL_MODES
    from segexp.losses import fits

    return any(fits(activation, loss, mode) for mode in ALL_MODES)


def _activations() -> Rows:
    from segexp.activations.output import OUTPUT_ACTIVATIONS
    from segexp.losses import LOSSES

    columns = "name formula range tail wrong_pixel_gradient slope_at_zero overflows_fp16"
    columns += " losses aliases options warning source"
    rows = []
    for entry in OUTPUT_ACTIVATIONS.values():
        losses = [loss.name for loss in LOSSES.values() if _fits_somewhere(entry, loss)]
        rows.append(_row(entry, columns, wrong_pixel_gradient=entry.wrong_pixel, losses=losses))
    return rows


def _losses() -> Rows:
    from segexp.activations.output import OUTPUT_ACTIVATIONS
    from segexp.losses import LOSSES

    columns = "name formula proper needs activations aliases options side_effects source"
    return [
        _row(entry, columns, activations=[a.name for a in OUTPUT_ACTIVATIONS.values() if _fits_somewhere(a, entry)])
        for entry in LOSSES.values()
    ]


def _hidden_activations() -> Rows:
    """Of `native`, which is no one function, only the name, what it is and its options are known."""
    from segexp.activations.hidden import HIDDEN_ACTIVATIONS, NOT_MEASURED, measured_costs

    columns = "name formula derivative range zero_centred saturates can_die learnable gain cost"
    columns += " forward_cost backward_cost both_cost saved_bytes family year overflows_fp16 aliases options source"
    rows = []
    for entry in HIDDEN_ACTIVATIONS.values():
        cost = measured_costs().get(entry.name)
        gain = None if math.isnan(entry.gain) else entry.gain
        row = _row(entry, columns, cost=str(cost or NOT_MEASURED), gain=gain)
        if cost:
            row |= {"forward_cost": cost.forward, "backward_cost": cost.backward, "both_cost": cost.both}
            row |= {"saved_bytes": cost.saved_bytes}
        if entry.make is None:
            row |= dict.fromkeys(("zero_centred", "saturates", "can_die", "gain", "cost", "overflows_fp16"))
        rows.append(row)
    return rows


def _optimizers() -> Rows:
    from segexp.optim import OPTIMIZERS

    return [_row(entry, "name formula options source") for entry in OPTIMIZERS.values()]


def _schedulers() -> Rows:
    from segexp.optim import SCHEDULERS

    return [_row(entry, "name formula moves options source") for entry in SCHEDULERS.values()]


def _datasets() -> Rows:
    from segexp import config
    from segexp.data import adapters

    rows = []
    for name, values in _presets("dataset").items():
        adapter = adapters().get(values.pop("adapter", ""))
        own = adapter is not None and adapter.preset is not None
        files = [] if own else config.preset_chain(_preset(name))
        over = len([path for path in files if path.parent == _preset("").parent]) > 1
        number, names = values.get("num_classes", ""), values.get("class_names", "null")
        row: dict[str, Any] = {"name": name, "adapter": adapter.name if adapter else ""}
        row["what"] = _first_sentence(_preset(name)) if over else adapter.summary if adapter else ""
        row["classes"] = "as the data say" if number == "0" else number
        row["class_names"] = [] if names == "null" else names.strip("[]").split(", ")
        for key in ("licence", "citation", "url"):
            value = values.pop(key, "").strip('"')
            row[key] = value if value != "null" else ""
        rows.append(row | {"options": _settings(values)})
    return rows


def _preset(name: str) -> Path:
    from segexp import config

    return config.configs_dir() / "dataset" / f"{name}.yaml"


def _first_sentence(path: Path) -> str:
    """What a preset is: the first sentence of its comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line[1:].strip() for line in lines if line.startswith("#"))
    return re.split(r"(?<=\.)\s", comment)[0]


def _presets(group: str) -> dict[str, dict[str, str]]:
    from segexp import config
    from segexp.data import adapters

    folder = config.configs_dir() / group
    presets = {name: config.preset_values(folder / f"{name}.yaml") for name in config.preset_names(group)}
    for entry in adapters().values() if group == "dataset" else ():
        if entry.preset is not None:  # of a plugin
            presets[entry.name] = {key: _text(value) for key, value in vars(entry.preset).items()}
    return presets


def _text(value: Any) -> str:
    """A value as a preset writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "..." if value == REQUIRED else "null" if value is None else str(value)


def _settings(values: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items() if key not in ("name", "defaults")]


_REPEATS = ("dataset", "split.fold", "seed")
"""Keys that a sweep varies to repeat an arm, not to compare it with another."""


def _studies() -> Rows:
    from segexp import config

    rows = []
    for name in config.preset_names("study"):
        swept = config.study_sweep(name)
        arms = math.prod(len(values) for key, values in swept.items() if key not in _REPEATS)
        if {"activation", "loss"} <= set(swept):
            incompatible = _incompatible_pairs(swept["activation"], swept["loss"])
            arms -= arms * incompatible // (len(swept["activation"]) * len(swept["loss"]))
        budgets = []
        for budget in config.study_variants(name, "budget"):
            in_budget = config.study_sweep(name, budget=budget)
            runs = arms * math.prod(len(in_budget[key]) for key in _REPEATS if key in in_budget)
            budgets.append(f"{budget}: {runs} {'run' if runs == 1 else 'runs'}")
        rows.append(
            {
                "name": name,
                "purpose": config.study_purpose(name),
                "arms": arms,
                "budgets": budgets,
                "protocols": config.study_variants(name, "protocol"),
                "sweeps": [f"{key}={','.join(values)}" for key, values in swept.items()],
            }
        )
    return rows


def _incompatible_pairs(activations: list[str], losses: list[str]) -> int:
    """How many of all pairs (aliases allowed) cannot be trained with two classes."""
    from segexp import config
    from segexp.activations.output import OUTPUT_ACTIVATIONS
    from segexp.losses import LOSSES, fits

    of_activations = [OUTPUT_ACTIVATIONS[config.alias_target("activation", name)[0]] for name in activations]
    of_losses = [LOSSES[config.alias_target("loss", name)[0]] for name in losses]
    return sum(not fits(activation, loss, "binary") for activation in of_activations for loss in of_losses)


def _models() -> Rows:
    from segexp.models.architectures import ARCHITECTURES

    rows = []
    for entry in ARCHITECTURES.values():
        divisor, min_size = _pixels(entry.divisor, entry), _pixels(entry.min_size or entry.divisor, entry)
        columns = "name summary encoders divisor min_size options source"
        rows.append(_row(entry, columns, divisor=divisor, min_size=min_size))
    return rows


def _pixels(number: "Pixels", entry: "Architecture") -> str:
    value = str(number.of(entry.defaults))
    return value if value == number.text else f"{value} ({number.text})"


def _backbones() -> Rows:
    from segexp.models.architectures import buildable, swap_closes

    return [
        {
            "name": name,
            "use": f"backbone.name={name}",
            "hidden_activations_replaced": swap_closes(name),
            "models": list(models),
        }
        for name, models in buildable().items()
    ]


KINDS: dict[str, Callable[[], Rows]] = {
    "activations": _activations,
    "losses": _losses,
    "hidden_activations": _hidden_activations,
    "optimizers": _optimizers,
    "schedulers": _schedulers,
    "datasets": _datasets,
    "models": _models,
    "augmentations": lambda: [{"name": n, "options": _settings(v)} for n, v in _presets("augment").items()],
    "studies": _studies,
    "backbones": _backbones,
}
"""What can be listed. The plain table leaves out the long columns; --json and --markdown give all."""

BRIEF: dict[str, tuple[str, ...]] = {
    "activations": ("name", "formula", "range", "tail", "wrong_pixel_gradient", "slope_at_zero", "aliases"),
    "losses": ("name", "formula", "proper", "needs", "side_effects", "source"),
    "hidden_activations": ("name", "formula", "range", "saturates", "can_die", "gain", "cost", "family", "year"),
    "datasets": ("name", "what", "classes", "licence"),
    "models": ("name", "summary", "encoders", "divisor", "min_size"),
    "studies": ("name", "purpose", "arms", "budgets", "protocols"),
}
"""Columns of the plain table where not all are shown."""
