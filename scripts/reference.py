"""Write the reference pages of the documentation from the code: commands, configuration, tables, Python API.

    python scripts/reference.py FOLDER

`docs/conf.py` does this at each build of the site. Descriptions of keys are the comments of configs/*.yaml.
"""

import argparse
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import segexp
from segexp.commands import COMMANDS, parser_of
from segexp.config import CODE_GROUPS, LocalOptions, configs_dir, is_volatile
from segexp.config.compose import every_option
from segexp.config.launchers import RayInit, RayRemote, SlurmSettings
from segexp.data import adapters
from segexp.records import COLUMNS, KEYS
from segexp.records.collected import FIRST, IMAGES, RARE, RECORD, TIMINGS
from segexp.records.formatting import markdown_table
from segexp.records.scores import SCORES
from segexp.registry import REQUIRED, Option, fields_of

REPOSITORY = Path(__file__).resolve().parent.parent

MADE = "<!-- written by scripts/reference.py -->\n"

BESIDE = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog", "SECURITY.md": "security"}
"""Files beside docs/ that the site shows -> their pages in `_generated/`."""


def write(folder: Path) -> None:
    """Write all pages into ``folder``; a page that is equal keeps its time, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Name of a page -> its Markdown."""
    written = {
        **{"commands": commands, "configuration": configuration, "tables": tables, "api": api},
        "notebook": lambda: notebook(REPOSITORY / "docs" / "notebook.ipynb"),
    }
    beside = {page: beside_docs(REPOSITORY / file) for file, page in BESIDE.items()}
    return {name: f"{MADE}\n{page()}\n" for name, page in written.items()} | beside


def inside_site(text: str, depth: int) -> str:
    """The text of a page whose links to files beside docs/ lead into the site; depth: folders between it and docs/."""
    for file, page in BESIDE.items():
        text = text.replace(f"]({'../' * (depth + 1)}{file}", f"]({'../' * depth}_generated/{page}.md")
    return text


def beside_docs(path: Path) -> str:
    """A file beside docs/ as a page: its links into docs/ are relative, those to other files of the checkout plain."""
    text = re.sub(r"\]\(docs/(?=\w)", "](../", path.read_text(encoding="utf-8"))
    for file, page in BESIDE.items():
        text = text.replace(f"]({file}", f"]({page}.md")
    return re.sub(r"\[([^\]]+)\]\((?!https?:|\.\./|\w+\.md|#)[^)]+\)", r"\1", text)


# Commands


def commands() -> str:
    """Usage, arguments and examples of every command, from its parser."""
    table = markdown_table([{"command": f"[{n}](#segexp-{n})", "what it does": s} for n, s in COMMANDS.items()])
    return "\n\n".join(["# Commands", table, *(_command(name) for name in COMMANDS)])


def _command(name: str) -> str:
    os.environ["COLUMNS"] = "100"  # argparse wraps the usage to the terminal
    parser = parser_of(name)
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    arguments = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    rows = [{"argument": _argument(action), "meaning": _plain(_help(parser, action))} for action in arguments]
    parts = [f"## segexp {name}", f"{parser.description}", f"```text\n{usage}\n```"]
    parts += [markdown_table(rows)] if rows else []
    parts += [f"```text\n{parser.epilog.rstrip()}\n```"] if parser.epilog else []
    return "\n\n".join(parts)


def _argument(action: argparse.Action) -> str:
    metavar = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    shown = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if not action.option_strings:
        return f"`{shown}`"
    return f"`{', '.join(action.option_strings)}{f' {shown}' if action.nargs != 0 else ''}`"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return " ".join((parser._get_formatter()._expand_help(action) if action.help else "").split())


def _plain(text: str) -> str:
    """Plain text as Markdown: nothing outside of backticks is markup."""
    parts = text.split("`")
    return "`".join(part if n % 2 else re.sub(r"([<*])", r"\\\1", part) for n, part in enumerate(parts))


# Configuration

KEYS_INTRO = """\
# Configuration keys

Set any key on the command line as `key=value`. `segexp train --dry-run` prints all keys with their values.

The column "identity" says whether a key belongs to what a run is. A run with another value of such a key is another
run. Keys without "yes" say where and how a run is carried out. "yes, but `X`" marks an option that earlier versions
did not have: with `X` a run is the same run as before.
"""


def configuration() -> str:
    """Every key with type, range, default, whether it enters the identity of a run, and what it does."""
    parts = [KEYS_INTRO]
    options = {(member, key): option for member, key, option in every_option()}
    plain = {key: option for (member, key), option in options.items() if not member}
    described = _described(configs_dir() / "train.yaml")
    parts += ["## A run", _keys(plain, {k: v for k, v in described.items() if k in plain})]
    for group in ("backbone", "augment"):
        default = "resnet18" if group == "backbone" else "light"
        found = _described(configs_dir() / group / f"{default}.yaml", f"{group}.")
        where = f"Presets: `{group}=NAME` with a file of `configs/{group}`; defaults are those of `{group}={default}`."
        parts += [f"## {group}", where, _keys(plain, {k: v for k, v in found.items() if k in plain})]
    parts += ["## dataset", "### Every data set of files"]
    files = _described(configs_dir() / "dataset" / "shared" / "files.yaml", "dataset.")
    parts.append(_keys({k: o for (m, k), o in options.items() if m == "dataset=folder"}, files))
    for name in adapters():
        own = {k: o for (m, k), o in options.items() if m == f"dataset={name}"}
        found = _described(configs_dir() / "dataset" / f"{name}.yaml", "dataset.")
        parts += [f"### dataset={name}", _keys(own, {k: v for k, v in found.items() if k != "dataset.adapter"})]
    for group in CODE_GROUPS:
        kinds = "architectures" if group == "model" else f"{group}s".replace("losss", "losses").replace("_", " ")
        parts += [f"## {group}", f"Options of the {kinds}; all belong to the identity.", _members(group, options)]
    return "\n\n".join([*parts, *_launchers()])


def _described(path: Path, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Dotted key -> value and comment of a YAML file; a comment goes on in the lines below that hold no key."""
    values: dict[str, Any] = {}
    comments: dict[str, str] = {}
    above: list[str] = []
    last = ""
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"( *)(\w+):(.*)", line):
            above = [*above[: len(found[1]) // 2], found[2]]
            if above[0] in ("defaults", "hydra"):
                last = ""
                continue
            last = prefix + ".".join(above)
            value = loaded
            for name in above:
                value = value[name]
            values[last] = value
            text = re.search(r"(?:^|\s)#\s?(.*)", re.sub(r"^\s*\"[^\"]*\"", "", found[3]))
            comments[last] = text[1] if text else ""
        elif last and (more := re.match(r"\s+#\s*(.*)", line)):
            comments[last] += f" {more[1]}"
        else:
            last = ""
    return {key: (value, comments[key]) for key, value in values.items() if not isinstance(value, dict)}


def _keys(options: Mapping[str, Option], described: Mapping[str, tuple[Any, str]]) -> str:
    rows = []
    for key, (default, comment) in described.items():
        option = options[key]
        rows.append(
            {
                "key": f"`{key}`",
                "value": _values(option),
                "default": "must be given" if default == REQUIRED else f"`{_value(default)}`",
                "identity": _identity(key, option),
                "meaning": _plain(comment),
            }
        )
    return markdown_table(rows)


def _identity(key: str, option: Option) -> str:
    if is_volatile(key):
        return ""
    return f"yes, but `{_value(option.since.before)}`" if option.since else "yes"


def _value(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or '""'


def _values(option: Option) -> str:
    """What an option accepts: words, or a type with its range."""
    inner = [kind for kind in typing.get_args(option.type) if kind is not types.NoneType]
    optional = types.NoneType in typing.get_args(option.type)
    kind = inner[0] if optional else option.type
    if option.choices:
        text = ", ".join(f"`{_value(choice)}`" for choice in option.choices)
    elif option.range.words:
        text = str(option.range)
    else:
        names = {int: "integer", float: "number", bool: "`true`, `false`", str: "text"}
        text = names.get(kind) or ("list" if typing.get_origin(kind) is list or kind is list else "mapping")
        text += f", {option.range}" if kind in (int, float) and str(option.range) != "finite" else ""
        text = text.replace(str(2**63 - 1), "2^63 - 1")
    return f"{text}; or `null`" if optional else text


def _members(group: str, options: Mapping[tuple[str, str], Option]) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (member, key), option in options.items():
        if member.startswith(f"{group}="):
            default = "must be given" if option.default == REQUIRED else f"`{_value(option.default)}`"
            rows.setdefault((key, _values(option), default), []).append(member.partition("=")[2])
    total = len(CODE_GROUPS[group])

    def of(names: Sequence[str]) -> str:
        return "all" if len(names) == total else ", ".join(f"`{name}`" for name in names)

    table = [{"key": f"`{k}`", "value": v, "default": d, f"{group}=": of(names)} for (k, v, d), names in rows.items()]
    return markdown_table(table)


def _launchers() -> Iterator[str]:
    yield "## hydra.launcher"
    yield "How a sweep is carried out (`segexp train -m`); nothing here changes what a run is."
    settings = {
        "local": (LocalOptions, ""),
        "submitit_slurm": (SlurmSettings, ""),
        "ray": (RayInit, "ray.init."),
        "ray ": (RayRemote, "ray.remote."),
    }
    for name, (section, prefix) in settings.items():
        comments = _field_comments(section)
        yield f"### hydra/launcher={name.strip()}{f', {prefix}*' if prefix else ''}"
        rows = [
            {
                "key": f"`hydra.launcher.{prefix}{option.name}`",
                "value": "any" if option.type is Any else _values(option),
                "default": f"`{_value(option.default)}`",
                "meaning": _plain(comments.get(option.name, "")),
            }
            for option in fields_of(section)
        ]
        yield markdown_table(rows)


def _field_comments(section: type) -> dict[str, str]:
    """Field -> its comment in the source, or its line `name: text` in the docstring."""
    named = re.findall(r"^(\w+): (.+?)(?=\n\w+: |\Z)", inspect.getdoc(section) or "", re.M | re.S)
    found = {name: " ".join(text.split()) for name, text in named}
    return found | dict(re.findall(r"^ {4}(\w+):[^#\n]+#\s*(.*)$", inspect.getsource(section), re.M))


# Tables

TABLES_INTRO = """\
# Columns of the tables

Tables are UTF-8 CSV files with a header, `.` as the decimal point, and an empty cell where a value is undefined.
Numbers have all their digits. Later versions add columns at the end. Columns in bold identify a row.
[What a run leaves](../run_directory.md) says what the files are for.
"""

COLLECTED: dict[str, tuple[str, dict[str, type]]] = {
    "runs.csv, of segexp collect": (
        "One row for each run. First the columns below, then the others of `summary.csv`, what `run.json` holds, and "
        "`config_KEY` for every key of the configuration (dots become underscores).",
        {name: COLUMNS["summary"].get(name, str) for name in FIRST} | RECORD | RARE | TIMINGS,
    ),
    "images.csv, of segexp collect": ("One row for each image and class of each finished run.", IMAGES),
}


def tables() -> str:
    """The columns of every CSV file, from the records."""
    parts = [TABLES_INTRO]
    for table, columns in COLUMNS.items():
        parts += [f"## {table}.csv", _columns(columns, KEYS.get(table, ()))]
    for title, (text, columns) in COLLECTED.items():
        parts += [f"## {title}", text, _columns(columns)]
    return "\n\n".join(parts)


def _columns(columns: Mapping[str, type], keys: Sequence[str] = ()) -> str:
    """A row for each column of a table; what none of them has is left out."""
    rows = [_column(name, kind, keys) for name, kind in columns.items()]
    used = [fact for fact in rows[0] if any(row[fact] for row in rows)]
    return markdown_table([{fact: row[fact] for fact in used} for row in rows])


def _column(name: str, kind: type, keys: Sequence[str]) -> dict[str, str]:
    score = SCORES.get(name)
    unit = high = better = ""
    if score and kind is not str:
        unit = {"points": "share (printed in points, x 100)", "pixels": "pixels or mm"}.get(score.unit, "")
        high = "0 and above" if score.highest == float("inf") else f"0 to {score.highest:g}"
        better = ("higher" if score.higher_is_better else "lower") if score.compared else ""
    return {
        "column": f"**`{name}`**" if name in keys else f"`{name}`",
        "kind": {int: "integer", float: "number", str: "text", bool: "boolean"}[kind],
        "title": score.title if score else "",
        "range": high,
        "unit": unit,
        "better": better,
    }


# The notebook


def notebook(path: Path) -> str:
    """An executed notebook as Markdown: text, code without lines for Jupyter alone, the richest of its outputs."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?!https?:|#)", "](../", source))
            continue
        code = "\n".join(line for line in source.splitlines() if not line.startswith("%")).strip()
        parts.append(f"```python\n{code}\n```")
        for output in cell["outputs"]:
            data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
            if "image/png" in data:
                image = f'<img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}">'
                parts.append(f"```{{raw}} html\n{image}\n```")
            elif "text/html" in data:
                parts.append(f"```{{raw}} html\n{data['text/html']}\n```")
            elif text := data.get("text/plain", "".join(output.get("text", ""))):
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts)


# Python API


def api() -> str:
    """Signature and docstring of every public name."""
    parts = [
        "# Python API",
        "What `import segexp` offers. [segexp from Python](../python.md) shows it in use.",
    ]
    for name in segexp.__all__:
        thing: Callable[..., Any] = getattr(segexp, name)
        signature = f"segexp.{name}{inspect.signature(thing)}" if callable(thing) else f"segexp.{name}"
        parts += [f"## segexp.{name}", f"```python\n{_wrapped(signature)}\n```", _docstring(thing)]
    return "\n\n".join(parts)


def _wrapped(signature: str) -> str:
    """A signature on one line, or one parameter on each; types without their modules."""
    plain = re.sub(r"(?:<class ')?(?:\w+\.)+(?=[A-Z]\w*)|'>?", "", signature).replace("<class ", "")
    if len(plain) <= 100:
        return plain
    name, inner, returns = re.fullmatch(r"(.*?)\((.*)\)( -> .*)", plain).groups()  # type: ignore[union-attr]
    return "\n    ".join([f"{name}(", *re.split(r"(?<=,) (?=\*?\*?\w+(?::|,|$))", inner)]) + f"\n){returns}"


def _docstring(thing: Any) -> str:
    """A docstring as Markdown: examples are code blocks, `name` and ``name`` code."""
    text = (inspect.getdoc(thing) or "").replace("``", "`")
    blocks = text.split("\n\n")
    return "\n\n".join(f"```python\n{block}\n```" if block.startswith(">>>") else block for block in blocks)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
