"""Claims in words: a file of sentences, and what each one says.

A file of claims is YAML, a list of sentences, each alone or with its source:

    claims:
      - activation=arctan beats activation=sigmoid on dice under loss=dice by at least 1 point
      - claim: hidden_activation=gelu matches hidden_activation=relu on dice within 1 point
        source: Somebody 2024, Table 3

A sentence is

    ARM beats|loses to ARM on METRIC [by at least SIZE] [under KEY=VALUE, ...] [on data set NAME]
    ARM matches        ARM on METRIC [within SIZE]      [under KEY=VALUE, ...] [on data set NAME]

the parts from METRIC on in any order. ARM is KEY=VALUE, or several with commas or "and"; both arms name the same keys.
SIZE is a number in the metric's own unit, or "1 point", a hundredth of it. "beats" without a size: by more than 0;
"matches" without one: within what is negligible, where the metric has that or the caller says it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segexp.compare.result import METRICS, Metric
from segexp.compare.values import metric_of
from segexp.config import CODE_GROUPS, alias_target
from segexp.errors import UsageError
from segexp.registry import nearest

if TYPE_CHECKING:
    import yaml

RELATIONS = ("beats", "matches", "loses to")

GRAMMAR = (
    'write "activation=arctan beats activation=sigmoid on dice under loss=dice by at least 1 point", '
    'or "... matches ... on dice within 1 point"'
)


@dataclass(frozen=True)
class Claim:
    """A sentence of the file. relation: beats, matches or loses to; arms and conditions under their canonical names.

    margin: in the metric's own unit, of 0 or more; sized: whether the sentence says it. dataset: "" for any. line:
    where it stands in the file.
    """

    text: str
    candidate: Mapping[str, str]
    relation: str
    reference: Mapping[str, str]
    metric: Metric
    margin: float
    sized: bool
    under: Mapping[str, str]
    dataset: str
    source: str
    line: int


def read_claims(path: Path, rope: float | None = None) -> list[Claim]:
    """The claims of a file. rope: what "matches" without a size means, as `--rope` takes it. Raises UsageError with the
    line of what is no claim."""
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where} is no YAML: {getattr(error, 'problem', None) or error}") from error
    top = _mapping(path, root, ("claims",))
    items = top["claims"].value if isinstance(top.get("claims"), yaml.SequenceNode) else []
    if not items:
        raise UsageError(f"{path} holds no claims: below `claims:`, {GRAMMAR}, each behind a dash")
    return [_item(path, item, rope) for item in items]


def _item(path: Path, node: "yaml.Node", rope: float | None) -> Claim:
    """A sentence alone, or a mapping of claim and source."""
    import yaml

    fields = {"claim": node} if isinstance(node, yaml.ScalarNode) else _mapping(path, node, ("claim", "source"))
    for key, value in fields.items():
        if not isinstance(value, yaml.ScalarNode):
            raise UsageError(f"{_line(path, value)}: {key} must be a text")
    if "claim" not in fields:
        raise UsageError(f"{_line(path, node)}: there is no claim, only {', '.join(fields) or 'nothing'}; {GRAMMAR}")
    text = " ".join(str(fields["claim"].value).split())
    source = str(fields["source"].value) if "source" in fields else ""
    try:
        return dataclasses.replace(claim_of(text, rope), source=source, line=node.start_mark.line + 1)
    except UsageError as error:
        raise UsageError(f'{_line(path, node)}, "{text}": {error}') from error


def _mapping(path: Path, node: "yaml.Node | None", known: Sequence[str]) -> "dict[str, yaml.Node]":
    """The keys of a node, each of them known and there once."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{_line(path, node)}: here belong {' and '.join(f'`{key}:`' for key in known)}")
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value
        if not isinstance(name, str) or name not in known:
            raise UsageError(f"{_line(path, key)}: unknown key '{name}'{nearest(str(name), known)}")
        if name in found:
            raise UsageError(f"{_line(path, key)}: {name} is there twice; write it once")
        found[name] = value
    return found


def _line(path: Path, node: "yaml.Node | None") -> str:
    return f"{path}, line {node.start_mark.line + 1}" if node else str(path)


_WORDS = re.compile(r"(?:^|\s)(beats|matches|loses to|on data ?set|on|under|by at least|within)(?=\s|$)")
_PAIR = re.compile(r"([a-z_][a-z0-9_.]*)=(\S+)")
_SIZE = re.compile(r"(\d+(?:\.\d*)?(?:e[-+]?\d+)?)( points?)?", re.IGNORECASE)


def claim_of(text: str, rope: float | None = None) -> Claim:
    """A sentence as a claim. Raises UsageError saying what is wrong with it."""
    text = " ".join(text.split())
    first, *rest = (part.strip() for part in _WORDS.split(text))
    parts: dict[str, str] = {}
    for word, said in zip(rest[::2], rest[1::2], strict=True):
        name = "whom" if word in RELATIONS else word.replace("dataset", "data set")
        if name in parts:
            raise UsageError(f"'{word}' is one too many; a sentence makes one claim")
        parts[name] = said
    relation = rest[0] if rest else ""
    if relation not in RELATIONS:
        raise UsageError(f"it does not say who beats, matches or loses to whom; {GRAMMAR}")
    if "on" not in parts:
        raise UsageError(f"it does not say on which metric: add 'on dice'; there are {', '.join(METRICS)}")
    candidate, reference = _pairs(first), _pairs(parts["whom"])
    if candidate.keys() != reference.keys():
        differing = ", ".join(sorted(candidate.keys() ^ reference.keys()))
        raise UsageError(f"both arms must name the same keys; only one of them names {differing}")
    if candidate == reference:
        raise UsageError("both arms are the same")
    under = _pairs(parts["under"]) if "under" in parts else {}
    if under.keys() & candidate.keys():
        raise UsageError(f"{', '.join(under.keys() & candidate.keys())} is of the arms, and cannot stand under 'under'")
    if parts["on"] not in METRICS:
        raise UsageError(f"unknown metric '{parts['on']}'{nearest(parts['on'], list(METRICS))}")
    metric = metric_of(parts["on"], rope)
    return Claim(
        text=text,
        candidate=candidate,
        relation=relation,
        reference=reference,
        metric=metric,
        margin=_margin(relation, parts, metric),
        sized="within" in parts or "by at least" in parts,
        under=under,
        dataset=parts.get("on data set", ""),
        source="",
        line=0,
    )


def _pairs(text: str) -> dict[str, str]:
    """KEY=VALUE, several with commas or "and", names of the registries made canonical."""
    found: dict[str, str] = {}
    for part in re.split(r"\s*,\s*|\s+and\s+", text):
        pair = _PAIR.fullmatch(part)
        if pair is None:
            raise UsageError(f"'{part}' is no KEY=VALUE; {GRAMMAR}")
        key, value = pair[1].removesuffix(".name"), pair[2]
        if key in CODE_GROUPS:
            value = alias_target(key, value)[0]
        if key in found:
            raise UsageError(f"{key} is there twice")
        found[key] = value
    return found


def _margin(relation: str, parts: Mapping[str, str], metric: Metric) -> float:
    """The size of the claim in the metric's own unit."""
    mine, other = ("within", "by at least") if relation == "matches" else ("by at least", "within")
    if other in parts:
        raise UsageError(f"'{relation}' goes with '{mine} SIZE', not with '{other}'")
    if mine not in parts:
        if relation == "matches" and math.isnan(metric.rope):
            raise UsageError(f"what is negligible on {metric.name} is for you to say: add 'within SIZE'")
        if relation == "matches" and metric.rope == 0:
            raise UsageError("'matches' without a size within a --rope of 0 is never so: give a width above 0")
        return metric.rope if relation == "matches" else 0.0
    size = _SIZE.fullmatch(parts[mine])
    if size is None:
        raise UsageError(f"'{mine} {parts[mine]}' is no size: a number in the unit of {metric.name}, or '1 point'")
    if size[2] and not metric.points:
        raise UsageError(f"{metric.name} is not measured in points: say '{mine} {size[1]}' in its own unit")
    margin = float(size[1]) / (100 if size[2] else 1)
    if (metric.points and margin > 1) or not math.isfinite(margin) or (relation == "matches" and margin == 0):
        cure = f"'{size[1]} points' perhaps?" if metric.points and margin > 1 else "a size is a finite number above 0"
        raise UsageError(f"'{mine} {parts[mine]}' is out of range for {metric.name}: {cure}")
    return margin
