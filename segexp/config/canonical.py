"""The canonical configuration, everything that can be wrong with it, and the hash that names a run."""

import copy
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segexp.activations.output import (
    HEAD_OPTIONS,
    OUTPUT_ACTIVATIONS,
    HeadMode,
    OutputActivation,
    learnable_with,
    outside,
    slope_of,
)
from segexp.config import (
    CODE_GROUPS,
    TRACKERS,
    Choice,
    Config,
    HeadConfig,
    MetricsConfig,
    SweepConfig,
    alias_target,
    choice_config,
    entry_of,
    is_volatile,
    mode_of,
    params,
)
from segexp.data import adapters
from segexp.data.image_set import is_text
from segexp.data.normalise import rule_of
from segexp.errors import PairError, UsageError, first_line
from segexp.losses import LOSSES, fits, incompatibility, term_of
from segexp.models.architectures import ARCHITECTURES, NO_ENCODER, BackboneConfig, check_model, check_size
from segexp.records import LONGEST, NUMERICS, flatten
from segexp.records.formatting import pluralize
from segexp.records.scores import COLOR, OWN_SCORES
from segexp.registry import REQUIRED, Option, Range, check_option, checked_options, fields_of, nearest

log = logging.getLogger("segexp")

_NOT_ON_WINDOWS = r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\.|$)|[<>:\"|?*]|[. ]$"


def identity(config: Config, content: Mapping[str, str], numerics: int | None = None) -> str:
    """SHA-256 (hex) of what the run is: the canonical configuration without volatile keys, and content hashes.

    Options newer than the first records (`Since`) are left out while they mean "as before", and so is ``numerics``
    while it is 1, so that runs recorded earlier keep their identity. ``content`` holds the fingerprints of what the
    configuration only points at: data, split, weight files. numerics: version of the numbers (default: this segexp's).
    """
    flat = {k: v for k, v in flatten(config).items() if not is_volatile(k, v)}
    if content.get("weights"):
        del flat["backbone.weights"]
    for key, option in options_in(vars(config)).items():
        if option.since is not None and key in flat and flat[key] == option.since.before:
            flat.pop(key)
    whole: dict[str, Any] = {"config": flat, "content": dict(content)}
    version = NUMERICS if numerics is None else numerics
    if version == 1:
        flat.pop("trainer.format", None)  # all were contiguous
    else:
        whole["numerics"] = version
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def plugins_of(config: Config) -> dict[str, list[str]]:
    """Name of each plugin whose entries the configuration uses -> these entries, as "loss=mine"."""
    chosen = [(CODE_GROUPS[group], getattr(config, group).name) for group in CODE_GROUPS]
    chosen += [(LOSSES, term) for term in params(config.loss).get("terms") or ()]
    chosen.append((adapters(), config.dataset.adapter))
    chosen += [(OWN_SCORES, name) for name in config.metrics.scores or ()]
    used: dict[str, list[str]] = {}
    for registry, name in chosen:
        if name in registry.origins:
            used.setdefault(registry.origins[name], []).append(f"{registry.group}={name}")
    return used


def arm_identity(config: Config, content: Mapping[str, str], numerics: int | None = None) -> str:
    """The identity of the arm's first run, of seed 0 and fold 0: the runs of one arm share it.

    ``content`` is that of the first run.
    """
    return identity(first_of_arm(config), content, numerics)


def first_of_arm(config: Config) -> Config:
    """The configuration of the arm's first run, of seed 0 and fold 0."""
    split = dataclasses.replace(config.split, fold=None if config.split.fold is None else 0)
    return dataclasses.replace(config, seed=0, split=split)


SECTIONS: dict[str, Any] = {
    f.name: f.default_factory for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory)
}
"""Name of a section -> its dataclass; members of code groups and data sets add their own options."""


def options_in(config: Mapping[str, Any]) -> dict[str, Option]:
    """Dotted key -> what is declared about it, for each part of a configuration.

    config: name of a section or plain field -> its value, typed or as recorded. Parts that segexp does not know are
    left out.
    """
    options = {option.name: option for option in fields_of(Config)}
    for name, kind in SECTIONS.items():
        section = config.get(name)
        section = vars(section) if dataclasses.is_dataclass(section) else section
        if isinstance(section, Mapping):
            options |= {f"{name}.{option.name}": option for option in _section_options(name, kind, section)}
            terms = section.get("terms") if name == "loss" else None
            for term, given in terms.items() if isinstance(terms, Mapping) else ():
                if isinstance(given, Mapping):
                    known = _section_options("loss", Choice, {"name": term})
                    options |= {f"loss.terms.{term}.{option.name}": option for option in known}
    return options


def _section_options(name: str, kind: type, section: Mapping[str, Any]) -> tuple[Option, ...]:
    if name in CODE_GROUPS:
        try:
            return alias_target(name, str(section.get("name")))[1]
        except UsageError:
            return ()
    if name == "dataset":
        adapter = adapters().get(str(section.get("adapter")))
        kind = adapter.config if adapter else kind
    return fields_of(kind)


CHOICES: dict[str, tuple[str, ...]] = {
    key: option.choices for key, option in options_in(vars(Config())).items() if option.choices
}
"""Plain fields that take one of a few words."""


def as_before(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recorded configuration in which each option newer than the record has its "as before" value."""
    complete = copy.deepcopy(dict(tree))
    for key, option in options_in(tree).items():
        if option.since is not None:
            node: Any = complete
            *sections, last = key.split(".")
            for section in sections:
                node = node[section]
            node.setdefault(last, option.since.before)
    return complete


def config_of(tree: Mapping[str, Any]) -> Config:
    """A recorded configuration, as a nested plain mapping, back as the typed and resolved one.

    It is data: every key must be one of ours, with a value of its type. Raises UsageError.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(tree, Mapping):
        raise UsageError("a recorded configuration must be a mapping of keys to values")
    tree = as_before(tree)
    plain = {option.name: option.type for option in fields_of(Config)}
    known = plain.keys() | SECTIONS.keys()
    for word, keys in (("unknown", tree.keys() - known), ("missing", known - tree.keys())):
        if keys:
            raise UsageError(f"recorded configuration: {min(keys, key=str)} is {word}")
    values: dict[str, Any] = {}
    try:
        for name, usual in SECTIONS.items():
            kind = usual
            if name in CODE_GROUPS:
                kind = choice_config(name, str(tree[name]["name"]))
            elif name == "dataset":
                kind = adapters()[str(tree[name]["adapter"])].config
            values[name] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), tree[name]))
        fields = OmegaConf.structured(dataclasses.make_dataclass("Plain", plain.items()))
        values |= OmegaConf.to_container(OmegaConf.merge(fields, {name: tree[name] for name in plain}))  # type: ignore[arg-type]
    except (OmegaConfBaseException, KeyError, TypeError) as error:
        raise UsageError(f"recorded configuration: {first_line(error)}") from error
    return resolve(Config(**values))


def resolve(config: Config) -> Config:
    """The canonical configuration: values checked, aliases replaced, meaningless pairs refused.

    Raises UsageError with one line naming key, value and cure.
    """
    adapter = adapters().get(str(config.dataset.adapter))
    if adapter and adapter.complete and config.dataset.num_classes == 0:
        config = dataclasses.replace(config, dataset=adapter.complete(config.dataset))
    _check_values(config)
    if config.head.mode == "binary" and config.dataset.num_classes != 2:
        wrong = f"head.mode=binary is for two classes, dataset.num_classes={config.dataset.num_classes}"
        raise UsageError(f"{wrong}: use head.mode=softmax or head.mode=independent")
    mode = mode_of(config)
    if config.head.mode != "auto":
        _unused("head.mode", config.head.mode, mode, "with two classes")
    if config.dataset.overlapping and mode == "softmax":
        raise UsageError("classes that overlap (dataset.regions) are not exclusive: use head.mode=independent")
    given = (config.activation.name, config.loss.name)
    weights = config.backbone.weights
    if weights not in (None, "imagenet"):
        weights = str(place("backbone.weights", weights))
    config = dataclasses.replace(
        config,
        activation=_canonical("activation", config.activation, mode),
        loss=_canonical("loss", config.loss, mode),
        head=HeadConfig(mode),
        sweep=SweepConfig(None, None),
        outputs=str(place("outputs", config.outputs)),
        tracking=canonical_tracking(config.tracking),
        backbone=dataclasses.replace(config.backbone, weights=weights),
    )
    root = getattr(config.dataset, "root", None)
    if root is not None:
        config.dataset = dataclasses.replace(config.dataset, root=str(place("dataset.root", root)))  # type: ignore[call-arg]
    config.backbone = _canonical_backbone(config)
    config.metrics = _canonical_scores(config)
    config = _canonical_hidden(config)
    config.activation = _canonical_head_options(config)
    entry = learnable_with(OUTPUT_ACTIVATIONS[config.activation.name], params(config.activation))
    if config.loss.name == "sum":
        terms = params(config.loss)["terms"]
        config.loss = dataclasses.replace(config.loss, terms=checked_terms(terms, config.dataset.num_classes))  # type: ignore[call-arg]
        for term in map(str, terms):
            name = _canonical("loss", Choice(term), mode).name
            _check_pair(entry, name, mode, (entry.name, term))
    else:
        _check_pair(entry, config.loss.name, mode, given)
    model = (config.model.name, params(config.model), config.backbone.name)
    check_model(*model)
    if config.dataset.image_size is not None:
        check_size(*model, config.dataset.image_size)
    return config


def _canonical_scores(config: Config) -> MetricsConfig:
    """The metrics with the names of ``scores`` in order, each once. Raises UsageError."""
    names = sorted(set(config.metrics.scores or ()))
    for name in names:
        OWN_SCORES.find(name)
    if names and config.metrics.unit == "case":
        raise UsageError(f"metrics.scores={names} are of images: with metrics.unit=case leave metrics.scores out")
    return dataclasses.replace(config.metrics, scores=names or None)


def canonical_tracking(given: Any) -> list[str]:
    """The trackers that ``tracking`` names, each once and in order; [] for none. Raises UsageError."""
    names = given if isinstance(given, list) else [given]
    known = [*TRACKERS, *(["none"] if len(names) == 1 else [])]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown tracking '{unknown[0]}'{nearest(str(unknown[0]), known)}")
    return [name for name in TRACKERS if name in names]


def _canonical_backbone(config: Config) -> BackboneConfig:
    """The backbone, written in one way where the network has no encoder to choose. Raises UsageError for weights."""
    if ARCHITECTURES.find(config.model.name).encoder:
        return config.backbone
    if config.backbone.weights is not None:
        wrong = f"backbone.weights={config.backbone.weights}: model={config.model.name} has no encoder"
        raise UsageError(f"{wrong}: use backbone.weights=null")
    if config.backbone.name != NO_ENCODER:
        _note(f"model={config.model.name} has no encoder: backbone has no effect, and is recorded as {NO_ENCODER}")
    return BackboneConfig(NO_ENCODER, None)


@functools.cache
def _note(message: str) -> None:
    log.info(message)


def _unused(key: str, given: Any, recorded: Any, why: str) -> None:
    """Say that a setting has no effect, and so is written in one way."""
    if given != recorded:
        _note(f"{key}={str(given).lower()} has no effect {why}: it is recorded as {str(recorded).lower()}")


def _canonical_hidden(config: Config) -> Config:
    """``native`` replaces nothing: scope and gain, without effect, are written in one way. Raises UsageError if
    pretrained weights would be used with another activation than they were trained with."""
    name = entry_of("hidden_activation", config.hidden_activation.name).name
    hidden, init, backbone = dataclasses.replace(config.hidden_activation, name=name), config.init, config.backbone
    scope = params(hidden)["scope"]
    if name == "native":
        for key, given, usual in (("hidden_activation.scope", scope, "both"), ("init.gain", init.gain, "auto")):
            _unused(key, given, usual, "with hidden_activation=native")
        hidden = dataclasses.replace(hidden, scope="both")  # type: ignore[call-arg]
        init = dataclasses.replace(init, gain="auto")
    mismatched = name != "native" and scope != "decoder" and backbone.weights is not None
    if mismatched and not backbone.allow_mismatched_weights:
        raise UsageError(
            f"backbone.weights={backbone.weights} were trained with the encoder's own activation, not with "
            f"hidden_activation={name}: use hidden_activation.scope=decoder, backbone.weights=null, or "
            "backbone.allow_mismatched_weights=true to use them anyway (recorded with the run)"
        )
    allowed = backbone.allow_mismatched_weights
    _unused("backbone.allow_mismatched_weights", allowed, mismatched, "without mismatched weights")
    backbone = dataclasses.replace(backbone, allow_mismatched_weights=mismatched)
    return dataclasses.replace(config, hidden_activation=hidden, init=init, backbone=backbone)


def _check_values(config: Config) -> None:
    """Check what fields and options of registry entries declare, and conditions between them. Raises UsageError."""
    flat = flatten(config)
    for key, value in flat.items():
        if value == REQUIRED:
            raise UsageError(no_value(key))
        if isinstance(value, str):
            _check_text(key, value)
    for key, option in options_in(vars(config)).items():
        if key not in flat or key.startswith("loss.terms."):  # terms have no types yet: `checked_terms`
            continue
        # A plain field without declared limits may be infinite, such as trainer.clip_norm.
        if key.split(".")[0] in CODE_GROUPS or option.choices or option.range != Range():
            check_option(key, option, flat[key], config.dataset.num_classes)
    clip = flat["trainer.clip_norm"]
    if clip is not None and not clip > 0:
        raise UsageError(f"trainer.clip_norm={clip} is out of range: a positive norm, or null for no clipping")
    fractions = flat["split.fractions"]
    if len(fractions) != 3 or not all(0 < f < 1 for f in fractions) or not math.isclose(sum(fractions), 1.0):
        raise UsageError(f"split.fractions={fractions} must be three positive numbers that sum to 1: train, val, test")
    _check_dataset(flat)
    _check_folds(flat["split.source"], flat["split.folds"], flat["split.fold"], flat["split.leave_one_group_out"])
    if flat["split.stratify"] and flat["split.method"] != "random":
        raise UsageError("split.stratify=true deals groups by their classes: use split.method=random")
    study = str(flat["study.name"])
    if study.startswith(".") or any(c in study for c in "/\\\0") or len(study.encode()) > LONGEST:
        raise UsageError(f"study.name={study!r} must be a plain folder name of at most {LONGEST} bytes")
    if os.name == "nt" and re.search(_NOT_ON_WINDOWS, study):
        raise UsageError(f"study.name={study!r} is no folder name on Windows: use letters, digits, _ and -")


def _check_dataset(flat: Mapping[str, Any]) -> None:
    limit = flat["dataset.limit"]
    if limit is not None and not (0 < limit < 1 or (2 <= limit < math.inf and limit == int(limit))):
        raise UsageError(
            f"dataset.limit={limit:g} is neither a whole number of images from 2 nor a share below 1, as 0.1"
        )
    if flat["dataset.background"] == "none" and flat["dataset.num_classes"] == 2:
        raise UsageError("dataset.background=none needs three classes or more: two classes have one logit, for class 1")
    spacing = flat.get("dataset.spacing")
    if spacing is not None and (len(spacing) not in (2, 3) or not all(0 < s < math.inf for s in spacing)):
        raise UsageError(
            f"dataset.spacing={spacing} must be two positive numbers, pixel height and width, three with the distance "
            "of slices first, or null"
        )
    if flat["metrics.unit"] == "case" and flat["metrics.nsd"] == "surface":
        raise UsageError(
            "metrics.nsd=surface measures contours of images: with metrics.unit=case set metrics.nsd=pixel"
        )
    try:
        rule_of(flat["dataset.normalise"])
    except ValueError as error:
        raise UsageError(f"dataset.normalise={flat['dataset.normalise']} {error}") from None
    n_classes = flat["dataset.num_classes"]
    regions = flat.get("dataset.regions")
    if regions is not None:
        if len(regions) != n_classes - 1 or not 1 <= len(regions) <= 7:
            wrong = f"dataset.regions lists {len(regions)} regions, dataset.num_classes={n_classes}"
            raise UsageError(f"{wrong}: one for each class but the background, at most 7")
        if not all(re.fullmatch(r" *\d+( *, *\d+)* *", region) for region in regions):
            raise UsageError(f'dataset.regions={regions}: each is the mask values of a class, as "1,2,3"')
        if flat["dataset.background"] == "none" or flat["dataset.mask_coding"] != "index":
            raise UsageError('dataset.regions needs dataset.mask_coding=index and dataset.background="0"')
    for key, word in (("class_names", "name"), ("class_colors", "colour")):
        given = flat[f"dataset.{key}"]
        if given is not None and len(given) != n_classes:
            raise UsageError(f"dataset.{key} holds {pluralize(len(given), word)}: give each of {n_classes} classes one")
    if odd := [color for color in flat["dataset.class_colors"] or () if not COLOR.fullmatch(color)]:
        raise UsageError(f"dataset.class_colors: '{odd[0]}' is not a colour; write it as '#rrggbb', in quotes")


NOT_EMPTY = re.compile(r"(name|root|outputs|tuned|weights|\w+_(dir|file|path|column|key))$")
"""The end of keys that name something, or a place."""


def _check_text(key: str, text: str) -> None:
    if not text.strip() and NOT_EMPTY.search(key):
        raise UsageError(f"{key} is empty: is a shell variable unset? Write {key}=VALUE, or leave it out")
    if "\0" in text or not is_text(text):
        raise UsageError(f"{key}={ascii(text)[1:-1]} is not UTF-8 text: rename what it names")
    if text.startswith("~"):
        place(key, text)


def place(key: str, text: str) -> Path:
    """The absolute path that the value of a key means. Raises UsageError for ~name without such a home folder."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"{key}={text}: {Path(text).parts[0]} has no home folder: write the whole path") from None


def _check_folds(source: str, folds: int | None, fold: int | None, each_group: bool) -> None:
    if each_group:
        if folds is not None:
            raise UsageError(
                f"split.folds={folds} and split.leave_one_group_out=true contradict each other: leave one of them out"
            )
        if fold is None:
            raise UsageError(
                "split.leave_one_group_out=true needs the group to test: split.fold=0 for the first in order of their "
                "names, or all G of them: -m 'split.fold=range(G)'"
            )
        if source == "files":
            raise UsageError(
                "split.leave_one_group_out=true and split.source=files contradict each other, as split files name one "
                "test part: use split.source=fractions"
            )
        return
    if folds is None and fold is not None:
        raise UsageError(
            f"split.fold={fold} needs the number of folds: add split.folds=N or split.leave_one_group_out=true, or set "
            "split.fold=null"
        )
    if folds is None:
        return
    if fold is None:
        raise UsageError(
            f"split.folds={folds} needs the fold to test: split.fold=0 to {folds - 1}, "
            f"or all of them: -m 'split.fold=range({folds})'"
        )
    if fold >= folds:
        raise UsageError(f"split.fold={fold} is out of range: folds count from 0, so it must be below {folds}")
    if source == "files":
        raise UsageError(
            f"split.folds={folds} and split.source=files contradict each other, as split files name one test part: "
            "use split.source=fractions to cut all images into folds, or split.folds=null split.fold=null"
        )


def no_value(key: str) -> str:
    """The line about a key that must be given."""
    example = "'{dice: 1, ce: 0.5}'" if key == "loss.terms" else "VALUE"
    return f"{key} has no value: give it as {key}={example}"


def _canonical(group: str, choice: Choice, mode: HeadMode) -> Choice:
    """The choice under its canonical name. An alias may be valid under some head modes only."""
    entry = entry_of(group, choice.name)
    if choice.name == entry.name:
        return choice
    if mode not in entry.aliases[choice.name]:
        modes = " or ".join(entry.aliases[choice.name])
        raise UsageError(
            f"{group}={choice.name} means {group}={entry.name} for {modes} heads only, but this head is {mode} "
            f"(dataset.num_classes, head.mode): use {group}={entry.name}, or another head"
        )
    return dataclasses.replace(choice, name=entry.name)


def _check_pair(activation: OutputActivation, loss: str, mode: HeadMode, given: tuple[str, str]) -> None:
    """given: activation and loss as the user wrote them."""
    if reason := outside(activation, mode):
        raise PairError(f"activation={reason}")
    reason = incompatibility(activation, LOSSES[loss], mode)
    if reason is None:
        return
    losses = [entry.name for entry in LOSSES.values() if fits(activation, entry, mode)]
    activations = [entry.name for entry in OUTPUT_ACTIVATIONS.values() if fits(entry, LOSSES[loss], mode)]
    raise PairError(
        f"activation={given[0]} and loss={given[1]} do not fit: {reason}; "
        f"{activation.name} takes loss={'|'.join(losses)}, {loss} takes activation={'|'.join(activations)}"
    )


def _canonical_head_options(config: Config) -> Choice:
    """The activation with slope and prior_bias written in one way. Raises UsageError if it does not allow them."""
    choice, entry = config.activation, OUTPUT_ACTIVATIONS[config.activation.name]
    slope, prior = params(choice)["slope"], params(choice)["prior_bias"]
    try:
        factor = slope_of(entry, params(choice))
    except ValueError as error:
        raise UsageError(f"activation.slope={slope}: {error}; use activation.slope=native") from error
    if prior != "none" and entry.per_batch:
        raise UsageError(f"activation.prior_bias={prior}: {entry.name} depends on the batch: no bias fits; use none")
    if prior not in ("none", "auto"):
        n_foreground = config.dataset.num_classes - 1
        if (config.head.mode == "softmax" or config.dataset.background == "none") and float(prior) * n_foreground >= 1:
            raise UsageError(
                f"activation.prior_bias={prior} for each of {n_foreground} exclusive classes leaves nothing for the "
                f"background: it must be below {1 / n_foreground:.4g}"
            )
        prior = repr(float(prior))
    if slope != "learned" and factor == 1:
        slope = "native"
    elif slope not in ("matched", "learned"):
        slope = repr(factor)
    defaults = {option.name: option.default for option in HEAD_OPTIONS}
    cap = params(choice)["prior_bias_cap"]
    if prior == "none":
        _unused("activation.prior_bias_cap", cap, defaults["prior_bias_cap"], "with activation.prior_bias=none")
        cap = defaults["prior_bias_cap"]
    return dataclasses.replace(choice, slope=slope, prior_bias=prior, prior_bias_cap=cap)  # type: ignore[call-arg]


def checked_terms(terms: Any, num_classes: int | None = None) -> dict[str, Any]:
    """Terms of ``loss=sum`` as canonical name -> {weight, every option}, sorted by name: a sum has no order.

    Raises UsageError for anything that is not a sum under any head.
    """
    if not isinstance(terms, Mapping) or len(terms) < 2:
        raise UsageError(f"loss.terms={terms} must hold two losses or more, as in loss.terms='{{dice: 1, ce: 0.5}}'")
    canonical: dict[str, Any] = {}
    for typed, given in terms.items():
        name, known = alias_target("loss", str(typed))
        key = f"loss.terms.{typed}"
        if name in canonical or name == "sum":
            raise UsageError(f"{key}: {'a sum of sums' if name == 'sum' else f'{name} is given twice'}; write it once")
        try:
            weight, options = term_of(given)
        except (TypeError, ValueError):
            weight, options = math.nan, {}
        if not 0 < weight < math.inf:
            raise UsageError(f"{key}={given} must be a weight above 0, or {{weight: ..., option: ...}}")
        canonical[name] = {"weight": weight, **checked_options(key, name, known, options, num_classes)}
    return dict(sorted(canonical.items()))
