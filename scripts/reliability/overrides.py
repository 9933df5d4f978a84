"""The command line: settings and options that nobody should type, on every command that takes them."""

import functools
import random
import re
import shutil
from pathlib import Path

import yaml

from reliability import Ending, ended, fault_class, runs_of, said_by, study
from reliability.store import TRAINS_S

REPOSITORY = Path(__file__).resolve().parents[2]

SMALL = (
    *("dataset.number=24", "dataset.image_size=32", "trainer.device=cpu", "trainer.threads=1", "trainer.epochs=1"),
    *("model.encoder_depth=3", "model.decoder_channels=[16,8,8]", "backbone.name=tu-test_resnet", "study.name=fuzz"),
)
NOWHERE = ("dataset=folder", "dataset.root=missing")
"""Ends commands that would train, once all else has been read."""

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("train", "--dry-run", *SMALL),
    ("train", "--dry-run", *SMALL),
    ("train", "-m", "--dry-run", *SMALL),
    ("train", *NOWHERE),
    ("train", "-m", *NOWHERE),
    ("tune", *NOWHERE),
    ("decide", "--dry-run", *SMALL, "activation=sigmoid,arctan"),
    ("decide", *NOWHERE, "activation=sigmoid,arctan"),
    ("evaluate", "{run}", "--split", "val"),
    ("compare", "{study}"),
    ("list", "activations"),
    ("predict", "{run}", "missing.png", "-o", "masks"),
    ("predict", "{study}", "missing.png", "-o", "masks"),
    ("export", "{run}", "--format", "safetensors", "-o", "w"),
    ("data", "check", "lesions", *SMALL[:2]),
    ("curves", "arctan", "-o", "curves.png"),
)

HOSTILE = (
    *("", " ", "null", "~", "nan", "NaN", ".nan", "inf", "-inf", "-0", "0", "-1", "1e308", "1e999", "1e-400", "true"),
    *("9" * 30, "9" * 6000, "-" + "9" * 400, "0x7fffffffffffffff", "1_000_000_000_000", "0.1" + "0" * 500, "１２"),
    *("[]", "{}", "[[]]", "[[[[1]]]]", "[" * 60 + "]" * 60, "{a:" * 200 + "1" + "}" * 200, "[" * 3000, "[1,[2,{a:b}]]"),
    *("range(10**9)", "range(1000000000)", "range(0,1e9,1)", "range(0)", "range(3,1)", "range(0,1,0)", "range(nan)"),
    *("range(0,1,0.0000001)", "range(-1e308,1e308)", "choice()", "choice(1)", "choice(a,choice(b))", "glob(*)"),
    *("glob([*,[a]])", "sort(3,1,2)", "shuffle(range(100000000))", "interval(0,1)", "tag(a,choice(1,2))", "str(1)"),
    *("int(nan)", "float(x)", "bool(2)", "json_str({a:1})", "extend_list(1)", "int(" * 300 + "1" + ")" * 300),
    *("${oc.env:HOME}", "${oc.env:SECRET,x}", "${oc.decode:'1'}", "${oc.create:{a:1}}", "${eval:1}", "${seed}"),
    *("${${seed}}", "${trainer}", "${.}", "${..}", "${dataset.root}", "${hydra:runtime.cwd}", "${", "$", "${oc.env:"),
    *("${oc.select:hydra.job.env_set}", "${now:%Y%s%n}", "${oc.dict.keys:trainer}", "${study.name}", "${outputs}"),
    *("../..", "../outside/untouched.txt", "/", "/dev/zero", "/dev/stdin", "/proc/self/mem", "~root", "~", "a/../../b"),
    *("//host/share", "C:\\x", "file:///etc/passwd", "http://127.0.0.1:9/x", "a" * 5000, "a/" * 2000, "COM1", "."),
    *("ä", "日本語", "\u202egnp", "\u0000", "\x1b[2J", "\n", "a\nb", "\r", "\t", "\ud800", "😀" * 50, "e\u0301"),
    *("'", '"', "\\", "\\'", "'a", "a'b", '"a"b', "a,b", ",", ",,", "a=b", "=", "a:b", "#x", "!!python/none", "*a"),
    *("{_target_:os.system,command:id}", "{_target_: posix._exit}", "[{_target_:builtins.print}]", "!!os"),
    *("$(id)", "`id`", "; id", "| id", "%s%n", "{0.__class__}", "__import__('os')", "{{7*7}}", "-", "--", "-x"),
)
PREFIXES = ("",) * 40 + ("+", "++", "~", "~~", "=", "-", "--", "@", "+@")
ODD_KEYS = (
    *("_target_", "dataset._target_", "hydra", "hydra.run.dir", "hydra.searchpath", "hydra.launcher"),
    *("hydra.sweep.dir", "hydra.output_subdir", "hydra/launcher", "hydra.sweeper.params", "hydra.launcher.n_jobs"),
    *("hydra.callbacks", "hydra.job_logging", "hydra.hydra_help", "hydra.mode", "dataset@x", "loss@loss"),
    *("trainer", "trainer.", ".trainer", "trainer..epochs", "trainer[epochs]", "seed[0]", "schema/dataset"),
    *("defaults", "study", "protocol", "budget", "tuned", "a.b.c.d", "__class__", "é", "", " ", "0", "sweep.pairs"),
)
FLAGS = (
    *("--rates", "--trials", "--range", "--seeds", "-o", "--out", "--config-dir", "--from", "--looks", "--max-seeds"),
    *("--budget", "--metric", "--reference", "--rope", "--where", "--by", "--class", "--columns", "--claims"),
    *("--questions", "--sort", "--family", "--arm", "--threshold", "--tile", "--overlap", "--device", "--format"),
    *("--resolution", "--dataset", "--plugin", "--ensemble", "--older", "--watch", "--unknown", "-m", "--json"),
)


@functools.cache
def _known() -> tuple[list[tuple[str, str, list[str]]], list[str]]:
    """Each key with the choice of a group that has it, if one is needed, and with values that it takes; and values of
    other keys: of registries, and all that README and docs write."""
    from segexp.config import CODE_GROUPS, YAML_GROUPS, members_of, names_in
    from segexp.config.compose import every_option

    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    written = re.findall(r"(?<=[\s'`])[\w./]+=([^\s`'\"|]+)", "".join(p.read_text(encoding="utf-8") for p in pages))
    names = [name for group in CODE_GROUPS for name in names_in(group)]
    keys = [(member, key, [str(value) for value in (option.default, *option.choices)])
            for member, key, option in every_option()]  # fmt: skip
    keys += [("", group, list(members_of(group))) for group in (*CODE_GROUPS, *YAML_GROUPS)]
    return keys, sorted({*written, *names, "0.5", "1", "8", "1e-3", "auto", "true", "false"})


def _mutated(draw: random.Random, text: str) -> str:
    """With a few characters removed, doubled or put in."""
    for _ in range(draw.choice((1, 1, 2, 6))):
        at = draw.randrange(len(text) + 1)
        text = draw.choice((text[:at] + text[at + 1 :], text[:at] + text[at:][:3] * 2 + text[at + 3 :],
                            text[:at] + draw.choice("[](){},:='\"\\$~+@. \n\0%#ä") + text[at:]))  # fmt: skip
    return text


def _value(draw: random.Random) -> str:
    value = draw.choice(HOSTILE) if draw.random() < 0.6 else draw.choice(_known()[1])
    if draw.random() < 0.15:
        value = ",".join(draw.choices((*HOSTILE, *_known()[1]), k=draw.choice((2, 3, 40))))
    if draw.random() < 0.1:
        value = draw.choice(("[{}]", "{{a:{}}}", "choice({},1)", "'{}'", '"{}"', "range({})", "sort({})")).format(value)
    return _mutated(draw, value) if draw.random() < 0.15 else value


def _word(draw: random.Random) -> list[str]:
    """An override, or an option and its value."""
    if draw.random() < 0.2:
        flag = draw.choice(FLAGS)
        return draw.choice(([flag], [flag, _value(draw)], [f"{flag}={_value(draw)}"]))
    member, key, fitting = draw.choice(_known()[0])
    if draw.random() < 0.15:
        member, key = "", draw.choice(ODD_KEYS)
    elif draw.random() < 0.05:
        key = _mutated(draw, key)
    value = draw.choice(fitting) if fitting and draw.random() < 0.4 else _value(draw)
    word = f"{draw.choice(PREFIXES)}{key}={value}"
    return [*([member] if member and draw.random() < 0.8 else []), *[word] * draw.choice((1,) * 30 + (2,))]


ODD_NUMBERS = (*(-(10**6), -1, -0.5, 0, 1e-30, 1e-7, 0.5, 1, 2, 3, 7, 16, 31, 64, 1000, 10**6, 10**12, 1e30), 1 / 3)
NAMES = ("ä", "日本語", "a b", "x" * 100, "None", "001", "true", "a-b.c", "1e3", "-", "nan", "Ünï_cödé", "a'b")


def _legal(draw: random.Random) -> list[str]:
    """A key with a value that its type and range allow, odd as it may be."""
    from segexp.config.compose import every_option, quoted

    fitting = [one for one in every_option() if not one[0].startswith("dataset=") or one[0] == "dataset=lesions"]
    member, key, option = draw.choice([one for one in fitting if not one[1].endswith((".name", ".adapter"))])
    kind = str(option.type)
    values: list[object] = [*option.choices, *option.range.words, option.default]
    if "bool" in kind:
        values += [True, False]
    if "list" in kind or "tuple" in kind:
        values += [[], [1], [0.5, 1], ["a"], [[0, 1]], ["a", "b"], [255, 0]]
    elif "int" in kind or "float" in kind or option.range.words:
        ends = [end for end in (option.range.low, option.range.high) if abs(end) < float("inf")]
        whole = "float" not in kind and not option.range.words
        values += [n for n in (*ODD_NUMBERS, *ends) if option.range.holds(n) and not (whole and n != int(n))]
        if key == "trainer.threads":  # the stacks of more do not fit into `MEMORY`, and OpenMP then ends this process
            values = [n for n in values if not isinstance(n, int) or n <= 64]
    elif "str" in kind and not option.choices:
        values += NAMES
    if "None" in kind:
        values.append(None)
    value = draw.choice([one for one in values if str(one) != "???"] or ["x"])
    return [*([member] if member else []), f"{key}={quoted(value)}"]


def _tried(draw: random.Random, own: Path) -> Ending:
    """Words that are understood: a dry run, or a run of one epoch."""
    from segexp.config import canonical

    words = [word for _ in range(draw.choice((1, 1, 2, 4))) for word in _legal(draw)]
    outputs, what = f"outputs={own / 'outputs'}", " ".join(words)[:600]
    chosen = any(word.startswith("model=") for word in words)  # which may have no such options
    small = [word for word in SMALL if not (chosen and word.startswith("model."))]
    if draw.random() < 0.6:
        form = draw.choice(
            (("train", "--dry-run"), ("train", "-m", "--dry-run", "seed=0,1"), ("data", "check", "lesions"))
        )
        keys = () if form[0] == "data" else small
        if form[0] == "data":
            words = [*(word for word in words if word.startswith(("dataset.", "split."))), "dataset.number=12"]
        return ended(said_by([*form, *keys, *words, outputs], seconds=TRAINS_S), f"{' '.join(form)}: {what}")
    canonical._note.cache_clear()  # which says a thing once in a process
    # What would take hours is overridden.
    said = said_by(["train", *words, *small, outputs], seconds=TRAINS_S)
    ending = ended(said, f"train: {what}")
    if ending.how == "refused" and (found := [*own.rglob("traceback.txt")]):
        return Ending("traceback", ending.what, found[0].read_text(encoding="utf-8")[-800:])
    recorded = [*own.rglob("config.yaml")]
    unheard = _unheard([*words, *small], recorded[0], said.out + said.err) if ending.how == "same" and recorded else []
    if unheard:
        return Ending("lie", ending.what, f"the run has other values: {unheard}")
    return ending


def _unheard(words: list[str], recorded: Path, seen: str) -> list[str]:
    """Words that a run took, that its config.yaml does not have, and of which nothing was said."""
    from segexp.config.compose import parse_overrides

    given = {str(o.key_or_group): o.value() for o in parse_overrides(words)}
    unheard, tree = [], yaml.safe_load(recorded.read_text(encoding="utf-8"))
    for key, value in given.items():
        found = functools.reduce(lambda part, name: (part or {}).get(name), key.split("."), tree)
        group = isinstance(found, dict) or not {key.split(".")[0]} & tree.keys()
        # native: a slope of 1 may be that of the activation itself
        same = value in ("auto", found) or found == "native" or _plain(value) == _plain(found)
        same = same or (key == "metrics.scores" and not value and not found)  # none, either way
        if not group and not same and f"{key}=" not in seen:
            unheard.append(f"{key} is {found!r}, not {value!r}")
    return unheard


def _plain(value: object) -> str:
    """A value as text, however its numbers are written."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", lambda number: repr(float(number[0])), str(value).replace("'", ""))


@fault_class("settings and options of any kind, on every command that takes them", 5000, study)
def overrides(draw: random.Random, prepared: Path, own: Path) -> Ending:
    if draw.random() < 0.5:
        return _tried(draw, own)
    outputs = own / "outputs"
    shutil.copytree(prepared / "outputs", outputs)
    command = draw.choice(COMMANDS)
    words = [word.format(study=outputs / "s", run=runs_of(outputs)[0]) for word in command]
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = len(words) if draw.random() < 0.9 else draw.randrange(1, len(words) + 1)
        words[at:at] = _word(draw)
    what = " ".join(repr(word)[:300] if word not in command else word for word in words)
    return ended(said_by(words, own), what)
