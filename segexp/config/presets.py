"""The configuration files: where they are and what they offer, read without Hydra for `list` and completion."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segexp
from segexp.config import CODE_GROUPS, STUDY_VARIANTS, alias_target, names_in
from segexp.config.canonical import is_volatile
from segexp.errors import UsageError
from segexp.records import flatten
from segexp.registry import nearest


def configs_dir() -> Path:
    """The folder configs/ of the checkout if segexp runs from one, else the copy inside the installed package."""
    package = Path(segexp.__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs" / "train.yaml").is_file():
        return checkout / "configs"
    return package / "configs"


def preset_names(group: str, folders: tuple[Path, ...] = ()) -> list[str]:
    """Names of the YAML files of a group, sorted; ``folders`` are further configuration folders."""
    names = {p.stem for folder in (configs_dir(), *folders) for p in (folder / group).glob("*.yaml")}
    return sorted(names)


def preset_file(group: str, given: str) -> Path:
    """The file that ``given`` names: a preset of the group, or a path. Raises UsageError if it is neither."""
    if given in preset_names(group):
        return configs_dir() / group / f"{given}.yaml"
    if not Path(given).is_file():
        names = preset_names(group)
        raise UsageError(f"{given} is neither a file nor one of the {group} of segexp{nearest(given, names)}")
    return Path(given)


def changed_from_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values that turn the configuration of plain `segexp train` into a recorded one.

    config: dotted key -> value. Groups with another member than the default come first, under the name of the group,
    then options with another value than their member has. Where and how the run was carried out is left out.
    """
    train = _yaml(configs_dir() / "train.yaml")
    usual = {group: name for entry in train["defaults"] if isinstance(entry, dict) for group, name in entry.items()}
    expected = flatten(train)
    members = {group: str(config.get(f"{group}.name", usual[group])) for group in CODE_GROUPS}
    for group, member in members.items():
        if member in names_in(group):
            expected |= {f"{group}.{option.name}": option.default for option in alias_target(group, member)[1]}
    for group in ("dataset", "backbone", "augment"):
        # A member that is not a preset was made from one: a data set from the preset of its adapter.
        asked = (config.get(f"{group}.name"), config.get(f"{group}.adapter"), usual[group])
        members[group] = next(member for member in asked if member in preset_names(group))
        expected |= flatten(_yaml(configs_dir() / group / f"{members[group]}.yaml"), f"{group}.")
    if config.get("dataset.num_classes") == 2:
        expected["head.mode"] = "binary"  # whatever the user set
    changed: dict[str, Any] = {group: member for group, member in members.items() if member != usual[group]}
    terms: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        if key.startswith("loss.terms."):
            _, _, term, option = key.split(".")
            terms.setdefault(term, {})[option] = value
    if terms:
        changed["loss.terms"] = terms
    for key, value in config.items():
        shown = not is_volatile(key) or key in ("dataset.root", "dataset.group_file", "tuned")
        if shown and key in expected and value != expected[key]:
            changed[key] = value
    return changed


def _yaml(path: Path) -> dict[str, Any]:
    import yaml  # not for `list` and completion of presets

    tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree


def preset_values(path: Path) -> dict[str, str]:
    """Top-level `key: value  # comment` lines of a preset as text: key -> value, without comments."""
    values = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line[0].isspace() and not line.startswith(("#", "-")) and ":" in line:
            key, _, rest = line.partition(":")
            values[key] = rest.split(" #")[0].strip()
    return values


def study_purpose(study: str) -> str:
    """What a study is for: the first comment of its file below Hydra's line."""
    lines = (configs_dir() / "study" / f"{study}.yaml").read_text(encoding="utf-8").splitlines()
    return next(line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line)


def study_variants(study: str, group: str) -> list[str]:
    """The members of ``group`` (protocol, budget) that a study has, the default first."""
    files = (configs_dir() / "study" / group).glob(f"{study}-*.yaml")
    return [STUDY_VARIANTS[group], *sorted(path.stem.removeprefix(f"{study}-") for path in files)]


def study_sweep(study: str, **variants: str) -> dict[str, list[str]]:
    """What a study sweeps over in these variants (``budget="smoke"``): key -> values as text."""
    folder = configs_dir() / "study"
    chosen = [folder / group / f"{study}-{variants[group]}.yaml" for group in STUDY_VARIANTS if group in variants]
    swept: dict[str, str] = {}
    for path in (folder / f"{study}.yaml", *(path for path in chosen if path.is_file())):
        swept |= _yaml(path).get("hydra", {}).get("sweeper", {}).get("params", {})
    return {key: _values(key, str(text)) for key, text in swept.items()}


def _values(key: str, text: str) -> list[str]:
    """The values of a sweep as presets write it: a,b,c or range(n) or glob(*) or glob(*, exclude=a)."""
    if numbers := re.fullmatch(r"range\((\d+)\)", text):
        return [str(i) for i in range(int(numbers[1]))]
    if members := re.fullmatch(r"glob\(\*(?:, *exclude=(\w+))?\)", text):
        return [name for name in CODE_GROUPS[key] if name != members[1]]
    return [value.strip() for value in text.split(",")]
