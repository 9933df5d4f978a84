"""The user's own parts: which plugins are loaded and which never, how bad ones are refused, what they are to a run."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore
from messages import mentions, one_mentions
from tiny import TINY, tiny_config, tiny_run, wait_until

import segexp
from segexp import cli
from segexp.commands.completion import complete
from segexp.compare.blocks import arrange, reference_levels
from segexp.compare.warnings import unanswered
from segexp.config.arm import arm_of, arm_of_row
from segexp.config.compose import hydra_session
from segexp.errors import REFUSED, UsageError
from segexp.losses import LOSSES
from segexp.records import cell_of, flatten, read_run
from segexp.records.plugins import check_plugins, kept_plugins, versions_of
from segexp.records.process import lock_holder
from segexp.records.provenance import provenance_of
from segexp.records.runs import Run, column_of, row_of, run_at
from segexp.registry import NOT_STATED, REGISTRIES, plugins
from segexp.running import check_planned, prepare
from segexp.sweep import pool
from segexp.sweep.plan import Plan, keep_plan, make_plan, resume_plan

LOSS = """
from typing import Annotated
from segexp.plugin import Range, log_odds_of, loss, mean_over, reference_planes

@loss
def powered(prediction, target, *, power: Annotated[float, Range(1)] = 2.0):
    y_NKHW, valid_NHW = reference_planes(prediction, target)
    return mean_over((log_odds_of(prediction).sigmoid() - y_NKHW).abs() ** power, valid_NHW)
"""
USES = "from segexp.plugin import hidden_activation\n"
TWICE = f"{USES}@hidden_activation\ndef twice(x): return 2 * x\n"

Captured = pytest.CaptureFixture[str]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    yield
    plugins.use([])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files below a folder of plugins: path -> text; returns the first."""

    def written(folder: str = "mine", **files: str) -> Path:
        paths = [tmp_path / folder / f"{name.replace('__', '/', 1)}.py" for name in files]
        for path, text in zip(paths, files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return paths[0]

    return written


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Installs a package acme with a plugin "acme-parts" in its module acme.parts; returns the package's folder."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def install(**modules: str) -> Path:
        (site / "acme").mkdir(parents=True, exist_ok=True)
        (site / "acme-1.0.dist-info").mkdir(exist_ok=True)
        (site / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        entry = "[segexp.plugins]\nacme-parts = acme.parts\n"
        (site / "acme-1.0.dist-info" / "entry_points.txt").write_text(entry)
        for name, text in ({"__init__": ""} | modules).items():
            (site / "acme" / f"{name}.py").write_text(text)
        return site / "acme"

    return install


def hidden_names(capsys: Captured, *words: str) -> list[str]:
    """The names of `segexp list hidden_activations --json` after the words of a plugin, wherever they stand."""
    assert cli.main([*words]) == 0
    return [row["name"] for row in json.loads(capsys.readouterr().out)]


def refusal(*given: str | Path) -> str:
    """The line about plugins that cannot be loaded, after which nothing of the last one is left."""
    with pytest.raises(UsageError) as error:
        plugins.use([os.fspath(name) for name in given])
    assert "\n" not in str(error.value)
    assert not any(registry.origins for registry in REGISTRIES) or len(given) > 1
    return str(error.value)


# What is loaded


def test_a_plugin_is_named_before_or_after_the_command_and_in_the_environment(
    write: Write, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(parts=TWICE), write("other", more=TWICE.replace("twice", "thrice"))
    listing = ["list", "hidden_activations", "--json"]
    assert "twice" not in hidden_names(capsys, *listing)
    for words in (
        ["--plugin", str(first), *listing, f"--plugin={second}"],
        [listing[0], "--plugin", str(second), f"--plugin={first}", *listing[1:]],
    ):
        assert {"twice", "thrice"} <= set(hidden_names(capsys, *words))
    assert not {"twice", "thrice"} & set(hidden_names(capsys, *listing))
    monkeypatch.setenv(plugins.VARIABLE, f"{first}{os.pathsep}{second}")
    assert {"twice", "thrice"} <= set(hidden_names(capsys, *listing))
    monkeypatch.chdir(first.parent)
    assert "twice" in hidden_names(capsys, "--plugin", "parts.py", "--plugin", "../mine/parts.py", *listing)


def test_hydra_forgets_a_plugin_that_is_gone(write: Write) -> None:
    file = write(parts=TWICE)
    for given in ([file], [], [file]):
        plugins.use(given)
        with hydra_session():
            assert ("twice.yaml" in ConfigStore.instance().repo["hidden_activation"]) == bool(given)


@pytest.mark.parametrize(
    "fault",
    [
        "raise GeneratorExit",
        "raise BaseException('odd')",
        "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()",
        "raise type('Odd', (SystemExit,), {'__str__': lambda self: 1 / 0})()",
    ],
)
def test_whatever_a_plugin_raises_is_a_line_that_names_it(fault: str, write: Write) -> None:
    assert "parts.py, line 1: the plugin cannot be loaded: " in refusal(write(parts=f"{fault}\n{TWICE}"))


def test_a_hidden_activation_that_returns_nothing_in_the_network_is_refused(
    write: Write, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "def twice(x):\n    CALLS.append(x)\n    return 2 * x if len(CALLS) < 5 else None\n"
    file = write(parts=f"{USES}CALLS = []\n@hidden_activation\n{body}")
    words = ["train", *TINY, "hidden_activation=twice", "outputs=out", "--plugin", str(file)]
    monkeypatch.chdir(file.parent)
    assert cli.main(words) == 2
    assert "hidden_activation=twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--plugin"], ["list", "--plugin"], ["list", "--plugin="], ["--plugin", "-m", "list"]]
)
def test_the_name_of_a_plugin_is_needed(words: list[str], capsys: Captured) -> None:
    assert cli.main([*words]) == 2
    assert mentions(capsys.readouterr().err, "plugin") or not words[1:]


def test_help_and_commands_on_records_load_nothing(write: Write, tmp_path: Path, capsys: Captured) -> None:
    """As run directories hold all that they show."""
    broken = str(write(parts="1 / 0"))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help", "--plugin", broken])
    assert cli.main(["status", str(tmp_path), "--plugin", broken]) == cli.main(["status", str(tmp_path)])
    assert "parts.py" not in capsys.readouterr().err
    assert cli.main(["list", "losses", "--plugin", broken]) == 2


def test_an_installed_package_is_loaded_when_it_is_named(
    installed: Callable[..., Path], capsys: Captured, tmp_path: Path
) -> None:
    folder = installed(
        parts=f"{USES}from . import scale\n@hidden_activation\ndef twice(x): return scale.BY * x", scale="BY = 2"
    )
    assert "twice" not in hidden_names(capsys, "list", "hidden_activations", "--json")
    assert "acme" not in sys.modules
    assert "twice" in hidden_names(capsys, "list", "hidden_activations", "--json", "--plugin", "acme-parts")
    loaded = plugins.LOADED["acme-parts"]
    assert sorted(loaded.files) == ["acme/__init__.py", "acme/parts.py", "acme/scale.py"]
    assert float(segexp.hidden_activation("twice")(3.0)) == 6
    # A changed module of the package is loaded again, even within the same second.
    (folder / "scale.py").write_text("BY = 4")
    plugins.use(["acme-parts"])
    assert float(segexp.hidden_activation("twice")(3.0)) == 12
    assert plugins.LOADED["acme-parts"].sha256 != loaded.sha256
    assert mentions(refusal("acme-part"), "acme-parts")


MARKED = "import pathlib\npathlib.Path({mark!r}).touch()\n" + TWICE


def test_no_configuration_and_no_record_loads_a_plugin(
    write: Write, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's files can ask for one in any way that might work; only the command line and the user's own
    environment do."""
    mark = tmp_path / "executed"
    file = write(parts=MARKED.format(mark=str(mark)))
    own = tmp_path / "own"
    own.mkdir()
    (own / "study").mkdir()
    ways = [f"plugin: {file}", f"plugins: [{file}]", f"hydra:\n  searchpath: [file://{file.parent}]"]
    ways += [f"hydra:\n  job:\n    env_set:\n      {plugins.VARIABLE}: {file}"]
    monkeypatch.chdir(tmp_path)
    for way in ways:
        (own / "study" / "theirs.yaml").write_text(f"# @package _global_\nstudy:\n  name: theirs\n{way}\n")
        cli.main(["train", "--config-dir", str(own), "study=theirs", *TINY, "outputs=out", "--dry-run"])
    for word in (f"plugin={file}", f"+plugins={file}", f"hydra.job.env_set.{plugins.VARIABLE}={file}"):
        assert cli.main(["train", word, "--dry-run", "dataset.number=24", "dataset.image_size=32"]) == 2
    claims = tmp_path / "claims.yaml"
    claims.write_text(f"plugins: [{file}]\nclaims: []\n")
    cli.main(["compare", "out", "--claims", str(claims)])
    # A run directory with a copy of it, and an environment that names it.
    run = tmp_path / "out" / "theirs" / "sigmoid-00000000"
    (run / "plugins" / "parts").mkdir(parents=True)
    shutil.copy(file, run / "plugins" / "parts")
    facts = {"sha256": "0" * 64, "given": str(file), "files": {"parts.py": "0" * 64}, "entries": ["loss=mine"]}
    record = {
        "schema_version": 1,
        "status": "interrupted",
        "run_id": "0" * 64,
        "config": {},
        "plugins": {"parts": facts},
    }
    (run / "run.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text("loss:\n  name: twice\n")
    (run / "environment.txt").write_text(f"{plugins.VARIABLE}={file}\n")
    capsys.readouterr()
    for words in (["train", "--from", str(run)], ["resume", str(run.parent)], ["evaluate", str(run)]):
        assert cli.main(words) == 2, words
        assert mentions(capsys.readouterr().err, "--plugin", run / "plugins" / "parts" / "parts.py"), words
    with pytest.raises(UsageError, match="--plugin"):
        segexp.load(run)
    for words in (["status", "out"], ["show", str(run)], ["collect", "out"], ["report", "out"], ["doctor"]):
        cli.main(words)
    assert not mark.exists()
    assert not plugins.LOADED


STATIC = """
1 / 0
import segexp.plugin as sp
from segexp.plugin import *
from typing import Annotated, Literal

@sp.hidden_activation
class MyRelu:
    def __init__(self, channels, *, form: Literal["left", "right"] = "left"): ...

@output_activation(gives="probability", name="renamed", aliases=("shorter",))
def long_name(x, *, power: Annotated[float, Range(1)] = 2.0): ...

@loss
def relu(prediction, target): ...

@dataset(num_classes=2)
def mine(*, where: str = ""): ...

@architecture
def ten_lines(in_channels, classes, *, width: int = 8): ...

@score
def volume(predicted, reference, valid, probability): ...

@somebody.elses
def other(x): ...
"""


def test_completion_reads_the_names_of_a_plugin_and_executes_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = str(write(parts=f"import helper\n{STATIC}", helper=STATIC.replace("MyRelu", "Helped")))
    monkeypatch.chdir(Path(parts).parent)
    expected = {
        ("train", "--plugin", parts, "hidden_activation=my_"): ["hidden_activation=my_relu"],
        ("--plugin", "parts.py", "train", "hidden_activation=hel"): ["hidden_activation=helped"],
        ("train", f"--plugin={parts}", "activation=rena"): ["activation=renamed"],
        ("train", "--plugin", parts, "-m", "activation=arctan,short"): ["activation=arctan,shorter"],
        ("train", "--plugin", parts, "activation=renamed", "activation.po"): ["activation.power="],
        ("train", "--plugin", parts, "hidden_activation=my_relu", "hidden_activation.form="): [
            "hidden_activation.form=left",
            "hidden_activation.form=right",
        ],
        ("train", "--plugin", parts, "dataset=min"): ["dataset=mine"],
        ("train", "--plugin", parts, "dataset=mine", "dataset.whe"): ["dataset.where="],
        ("train", "--plugin", parts, "model=ten"): ["model=ten_lines"],
        ("train", "--plugin", parts, "model=ten_lines", "model."): ["model.width="],
        ("train", "--plugin", parts, "hidden_activation=oth"): [],
        ("train", "--plugin", parts, "metrics.scores="): ["metrics.scores=[volume]"],
        ("evaluate", "run", "--plugin", parts, "metrics.scores=[other,vo"): ["metrics.scores=[other,volume]"],
        ("curves", "--plugin", parts, "--hidden", "my_"): ["my_relu"],
        ("train", "--plugin", "pa"): ["parts.py"],
        ("--plugin", "he"): ["helper.py"],
        ("train", "hidden_activation=my_"): [],
        ("train", "--plugin", "absent.py", "hidden_activation=selu"): ["hidden_activation=selu"],
    }
    for (*words, current), candidates in expected.items():
        assert complete(words, current)[0] == candidates, words
    monkeypatch.setenv(plugins.VARIABLE, parts)
    assert complete(["train"], "hidden_activation=my_")[0] == ["hidden_activation=my_relu"]
    assert not any(registry.origins for registry in REGISTRIES)


def test_completion_offers_identifiers_of_what_can_be_parsed(write: Write) -> None:
    odd = TWICE.replace("@hidden_activation", "@hidden_activation(name='rm -rf x')")
    assert plugins.parts_in(str(write(parts=odd))) == []
    assert plugins.parts_in(str(write(parts=f"x = {'(' * 50000}{')' * 50000}"))) == []


# Plugins that are refused


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x = (", ["line 1"]),
        ("import math\n\n1 / 0\n", ["line 3", "ZeroDivisionError"]),
        ("raise SystemExit(0)", ["line 1", "SystemExit"]),
        ("from os import _exit; _exit(0)", ["line 1", "SystemExit"]),
        ("x = 1", ["registers nothing", "segexp.plugin"]),
        (TWICE.replace("twice", "relu"), ["line 2", "hidden_activation=relu"]),
        (TWICE.replace("twice", "swish"), ["line 2", "hidden_activation=swish"]),
        (TWICE.replace("twice", "softmax"), ["line 2", "hidden_activation=softmax"]),
        (TWICE + TWICE[len(USES) :], ["line 4", "hidden_activation=twice"]),
        (f"{USES}@hidden_activation\ndef scaled(x, *, by=2): return by * x", ["line 2", "by"]),
        ("import nothing_of_this_name", ["line 1", "nothing_of_this_name"]),
        ("x = '\\0'\x00", ["line 1"]),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_refused_with_its_line(text: str, parts: list[str], write: Write) -> None:
    file = write(parts=text)
    line = refusal(file)
    assert mentions(line, file, *parts)
    file.write_text(TWICE)
    plugins.use([file])
    assert "parts" in plugins.LOADED


def test_what_is_no_file_of_python_is_refused(tmp_path: Path, write: Write) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "bytes.py").write_bytes(bytes(range(128, 256)))
    (tmp_path / "parts.txt").write_text(TWICE)
    for name in ("folder.py", "absent.py", "bytes.py", "parts.txt"):
        assert mentions(refusal(tmp_path / name), tmp_path / name)
    assert mentions(refusal("absent"), "absent", "./absent.py")


def test_two_plugins_do_not_share_names(write: Write) -> None:
    first = write(parts=TWICE)
    same_entry, same_name = write(others=TWICE), write("other", parts=TWICE.replace("twice", "thrice"))
    assert mentions(refusal(first, same_entry), same_entry, "the plugin parts", "hidden_activation=twice")
    assert mentions(refusal(first, same_name), same_name, first)
    same_module = write(**{"a-b": TWICE}), write(a_b=TWICE.replace("twice", "thrice"))
    assert mentions(refusal(*same_module), *same_module, "module name segexp_plugin_a_b", "rename")
    assert list(plugins.LOADED) == ["a-b"]
    first_helped = write("a", one=f"import helper\n{TWICE}", helper="")
    second_helped = write("b", two=f"import helper\n{TWICE.replace('twice', 'thrice')}", helper="")
    line = refusal(first_helped, second_helped)
    assert mentions(line, first_helped.parent / "helper.py", second_helped.parent / "helper.py")


def test_two_plugins_do_not_share_a_module_that_registers(write: Write) -> None:
    common = write(common=TWICE)
    first, second = write(one="import common\n"), write(two="import common\n")
    for given in ((first, second), (common, first), (first, common)):
        line = refusal(*given)
        assert mentions(line, f"--plugin {given[1]}: {common}", f"the plugin {given[0].stem}", "one file that imports")
        assert "another name" not in line
        plugins.use([])
    plugins.use([write(both="import one, two\n")])
    # A name that two plugins give by a function that they share is a name to change.
    write(common=f"{USES}def make(name):\n    hidden_activation(name=name)(lambda x: 2 * x)\n")
    first, second = (write(**{name: "import common\ncommon.make('own')\n"}) for name in ("one", "two"))
    assert mentions(refusal(first, second), "hidden_activation=own", "another name")


def test_modules_of_the_current_folder_yield_to_those_beside_the_plugin(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m segexp` puts it on Python's path, and it may hold the helper that the copy in a run also has."""
    monkeypatch.syspath_prepend(write("there", helper="BY = 2").parent)
    file = write(
        "here", parts=f"import helper\n{USES}@hidden_activation\ndef scaled(x): return helper.BY * x", helper="BY = 3"
    )
    plugins.use([file])
    assert float(segexp.hidden_activation("scaled")(1.0)) == 3


@pytest.mark.parametrize("name", ["math", "random", "yaml"])
def test_a_module_beside_the_plugin_does_not_hide_behind_an_installed_one(name: str, write: Write) -> None:
    file = write(**{"parts": f"def later():\n    import {name}\n{TWICE}", name: ""})
    assert mentions(refusal(file), file.parent / f"{name}.py")


# What is hashed is what is executed


def test_the_identity_is_that_of_all_own_modules_and_not_of_the_place(write: Write, tmp_path: Path) -> None:
    files = {
        "parts": f"import used, package.inner\nfrom package import *\ndef later():\n    import lazy\n{TWICE}",
        "used": "import numpy, json, deeper",
        "deeper": "",
        "lazy": "",
        "package____init__": "",
        "package__inner": "from . import sibling",
        "package__sibling": "import importlib\nlate = importlib.import_module('named')",
        "named": "",
        "unused": "",
    }
    file = write(**files)
    plugins.use([file])
    before = plugins.LOADED["parts"]
    assert sorted(before.files) == sorted(f"{n.replace('__', '/', 1)}.py" for n in files if n != "unused")
    (file.parent / "unused.py").write_text("changed = 1")
    shutil.copytree(file.parent, tmp_path / "moved")
    plugins.use([tmp_path / "moved" / "parts.py"])
    assert plugins.LOADED["parts"].sha256 == before.sha256
    for name in sorted(before.files):
        changed = tmp_path / "moved" / name
        content = changed.read_bytes()
        changed.write_bytes(content + b"\n")
        plugins.use([tmp_path / "moved" / "parts.py"])
        assert plugins.LOADED["parts"].sha256 != before.sha256, name
        changed.write_bytes(content)


def test_a_changed_module_is_executed_again_at_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's cache of compiled files would keep the old one where size and time in seconds are equal."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = write(parts=f"import helper\n{USES}@hidden_activation\ndef scaled(x): return helper.BY * x", helper="BY = 2")
    for by in (2, 3, 4):
        (file.parent / "helper.py").write_text(f"BY = {by}")
        os.utime(file.parent / "helper.py", (1, 1))
        segexp.use_plugins(file)
        assert float(segexp.hidden_activation("scaled")(1.0)) == by
    segexp.use_plugins()
    with pytest.raises(UsageError):
        segexp.hidden_activation("scaled")
    assert "helper" not in sys.modules


@pytest.mark.parametrize("importing", ["importlib.import_module('hid' + 'den')", "__import__('hid' + 'den')"])
def test_a_module_that_no_statement_imports_is_not_found(
    importing: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not be hashed: neither while the plugin is loaded nor later, wherever its folder is."""
    file = write(parts=f"import importlib\n{importing}\n{TWICE}", hidden="")
    later = write(later=f"{USES}import importlib\n@hidden_activation\ndef twice(x): return {importing} or 2 * x")
    for _ in range(2):
        assert mentions(refusal(file), file, "line 2", file.parent / "hidden.py")
        plugins.use([later])
        with pytest.raises(ModuleNotFoundError, match=r"hidden\.py"):
            segexp.hidden_activation("twice")(1.0)
        plugins.use([])
        monkeypatch.syspath_prepend(file.parent)


def test_a_helper_does_not_import_the_plugin_and_a_folder_needs_no_init(write: Write) -> None:
    """The plugin's file would be executed twice."""
    file = write(parts=f"import below.helper\n{TWICE}", below__helper="import below.other", below__other="")
    plugins.use([file])
    assert sorted(plugins.LOADED["parts"].files) == ["below/helper.py", "below/other.py", "parts.py"]
    (file.parent / "below" / "other.py").write_text("import parts")
    assert mentions(refusal(file), file.parent / "below" / "other.py", "line 1", file)


@pytest.mark.parametrize(
    "recorded",
    [None, 5, [], {"parts": None}, {"parts": {"files": 3, "entries": 4, "given": 5}}, {"parts": {"files": []}}],
)
def test_a_strangers_record_may_hold_anything(recorded: Any, write: Write, tmp_path: Path) -> None:
    assert versions_of(recorded) == {}
    assert list(kept_plugins(recorded, tmp_path)) in ([], ["parts"])
    if isinstance(recorded, dict):
        with pytest.raises(UsageError, match="--plugin"):
            check_plugins(recorded, tmp_path)
        plugins.use([write(parts=TWICE)])
        with pytest.raises(UsageError, match="has changed"):
            check_plugins(recorded, tmp_path)
    else:
        check_plugins(recorded, tmp_path)


def test_a_copy_outside_the_run_is_not_suggested(tmp_path: Path) -> None:
    """Names in a stranger's record, and links in its folder."""
    run_dir, outside = tmp_path / "run's", tmp_path / "evil.py"
    (run_dir / "plugins" / "parts").mkdir(parents=True)
    outside.touch()
    (run_dir / "plugins" / "parts" / "link.py").symlink_to(outside)
    for name, file in (("..", "../../evil.py"), ("parts", str(outside)), ("parts", "link.py"), ("parts", "a\0b")):
        assert kept_plugins({name: {"files": {file: ""}, "given": "evil.py"}}, run_dir) == {}
    assert kept_plugins({"parts": {"files": {"x.py": ""}, "given": 5}}, run_dir) == {}
    (run_dir / "plugins" / "parts" / "own.py").touch()
    with pytest.raises(UsageError) as error:
        check_plugins({"parts": {"files": {"own.py": ""}, "given": "own.py"}}, run_dir)
    assert shlex.quote(str(run_dir / "plugins" / "parts" / "own.py")) in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("torch.set_default_dtype(torch.float64)", "torch.set_default_dtype"),
        ("torch.set_grad_enabled(False)", "torch.set_grad_enabled"),
        ("torch.set_num_threads(torch.get_num_threads() + 1)", "torch.set_num_threads"),
        ("torch.set_default_device('meta')", "torch.set_default_device"),
        ("torch.use_deterministic_algorithms(True)", "torch.use_deterministic_algorithms"),
        ("torch.backends.mkldnn.enabled = False", "torch.backends.mkldnn.enabled"),
        ("torch.relu = torch.tanh", "torch.relu"),
        ("torch.nn.ReLU.forward = lambda self, x: x", "torch.nn.ReLU.forward"),
        ("from segexp.losses import LOSSES; LOSSES['dice'] = LOSSES['ce']", "loss=dice"),
        ("from segexp.losses import LOSSES; del LOSSES['dice']", "loss=dice"),
    ],
)
def test_a_plugin_leaves_what_other_runs_depend_on(text: str, named: str, write: Write) -> None:
    file = write(parts=f"import torch\n{TWICE}{text}\n")
    assert mentions(refusal(file), file, named)
    file.write_text(TWICE)
    plugins.use([file])
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    assert torch.relu is not torch.tanh
    assert LOSSES["dice"].name == "dice"


@pytest.mark.parametrize(
    "how",
    [
        "sys.path.insert(0, str(Path(__file__).parent / 'lib'))\nimport deep",
        "spec = importlib.util.spec_from_file_location('deep', Path(__file__).parent / 'lib' / 'deep.py')\n"
        "sys.modules['deep'] = importlib.util.module_from_spec(spec)",
    ],
)
def test_a_module_that_is_not_hashed_is_refused(how: str, write: Write) -> None:
    text = f"import importlib.util, sys\nfrom pathlib import Path\n{how}\n{TWICE}"
    file, places = write(parts=text, lib__deep="BY = 2"), list(sys.path)
    assert mentions(refusal(file), file, file.parent / "lib" / "deep.py")
    assert sys.path == places
    assert "deep" not in sys.modules
    file.write_text(f"import lib.deep\n{TWICE}")
    plugins.use([file])


def test_a_link_is_the_file_that_it_names(write: Write, tmp_path: Path) -> None:
    file = write(parts=f"import helper\n{TWICE}", helper="")
    (tmp_path / "alias.py").symlink_to(file)
    plugins.use([tmp_path / "alias.py"])
    (linked,) = plugins.LOADED.values()
    plugins.use([file])
    assert (linked.given, linked.sha256) == (str(file), plugins.LOADED["parts"].sha256)


# Runs


def test_a_list_says_which_entries_come_from_a_plugin(write: Write, capsys: Captured) -> None:
    words = ["list", "hidden_activations", "--plugin", str(write(parts=TWICE))]
    assert cli.main([*words, "--json"]) == 0
    (twice,) = (row for row in json.loads(capsys.readouterr().out) if row["plugin"] == "parts")
    assert [twice[fact] for fact in ("name", "range", "gain")] == ["twice", NOT_STATED, None]
    assert cli.main(words) == 0
    assert any(
        line.split()[0] == "twice" and line.split()[-1] == "parts" for line in capsys.readouterr().out.splitlines()[2:]
    )
    assert cli.main(["list", "losses", "--json", "--plugin", words[-1]]) == 0
    assert all("plugin" not in row for row in json.loads(capsys.readouterr().out))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin with an output activation, a hidden activation and a loss, and one helper."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "helper.py").write_text("BY = 2.0\n")
    (folder / "parts.py").write_text(
        "import helper\n"
        "from segexp.plugin import hidden_activation, output_activation\n"
        "@output_activation(aliases=('alg',))\n"
        "def algebraic(x, *, power: float = 2.0, form: str | None = None): return helper.BY * x * power\n"
        "@hidden_activation\n"
        "def twice(x): return 2 * x.relu()\n"
        f"{LOSS}"
    )
    return folder / "parts.py"


@pytest.fixture(scope="module")
def done(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the three parts, below a folder of outputs."""
    outputs = tmp_path_factory.mktemp("outputs")
    plugins.use([parts])
    choices = ("activation=algebraic", "activation.power=3", "hidden_activation=twice", "loss=powered")
    outcome = tiny_run(outputs, "trainer.epochs=1", *choices)
    assert outcome.status == "done"
    plugins.use([])
    return outcome.run_dir


@pytest.mark.parametrize("end", [
    "raise SystemExit(0)",
    *(
        pytest.param(end, marks=pytest.mark.slow)
        for end in ("raise GeneratorExit", "import os; os._exit(0)", "import sys; sys.exit()", "exit()")
    ),
])  # fmt: skip
def test_a_plugin_does_not_end_a_run_as_if_it_were_done(
    end: str, write: Write, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(parts=LOSS.replace("    return", f"    if len(target) > 2: {end}\n    return"))
    words = ["train", "--plugin", str(file), *TINY, "loss=powered"]
    assert cli.main(words) in (1, 2)
    assert one_mentions(capsys.readouterr().err.splitlines(), file, "line 8")
    (record,) = tmp_path.glob("outputs/**/run.json")
    assert read_run(record.parent)["status"] == "failed"
    write(parts=LOSS.replace("    return", f"    {end}\n    return"))
    assert cli.main(["check-plugin", str(file)]) == 1


def changed(parts: Path, tmp_path: Path, text: str = "BY = 2.5\n") -> Path:
    """A copy of the plugin with another helper."""
    shutil.copytree(parts.parent, tmp_path / "changed", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "changed" / "helper.py").write_text(text)
    return tmp_path / "changed" / "parts.py"


def test_a_run_records_its_plugins_and_keeps_a_copy(parts: Path, done: Path) -> None:
    (record,) = read_run(done)["plugins"].items()
    name, facts = record
    assert (name, facts["given"]) == ("parts", "parts.py")
    assert facts["entries"] == ["hidden_activation=twice", "activation=algebraic", "loss=powered"]
    assert list(facts["files"]) == ["parts.py", "helper.py"]
    for file in facts["files"]:
        assert (done / "plugins" / "parts" / file).read_bytes() == (parts.parent / file).read_bytes()
    assert str(parts.parent) not in json.dumps(facts)


def test_log_dry_run_and_comparison_say_which_plugin_was_used(
    parts: Path, done: Path, tmp_path: Path, capsys: Captured
) -> None:
    version = read_run(done)["plugins"]["parts"]["sha256"][:8]
    assert f"plugin parts.py {version}: hidden_activation=twice" in (done / "log.txt").read_text()
    words = [*TINY, "hidden_activation=twice", f"outputs={tmp_path}", "--dry-run", "--plugin", str(parts)]
    assert cli.main(["train", *words]) == 0
    assert f"\nplugin parts.py {version}: hidden_activation=twice\n" in capsys.readouterr().out
    assert provenance_of([done], [run_at(done)] * 2)["plugins"][f"loss=powered:{version}"] == 2


@pytest.mark.slow
def test_only_runs_that_use_an_entry_depend_on_its_plugin(parts: Path, tmp_path: Path) -> None:
    without = prepare(tiny_config(tmp_path))
    plugins.use([parts])
    beside, used = prepare(tiny_config(tmp_path)), prepare(tiny_config(tmp_path, "hidden_activation=twice"))
    aliased = prepare(tiny_config(tmp_path, "activation=alg"))
    summed = prepare(tiny_config(tmp_path, "loss=sum", "loss.terms={dice: 1, powered: 0.5}"))
    assert (beside.identity, beside.plugins) == (without.identity, {})
    assert used.plugins == {"parts": ["hidden_activation=twice"]}
    assert aliased.plugins == {"parts": ["activation=algebraic"]}
    assert summed.plugins == {"parts": ["loss=powered"]}
    shutil.copytree(parts.parent, tmp_path / "moved")
    plugins.use([tmp_path / "moved" / "parts.py"])
    assert prepare(tiny_config(tmp_path, "hidden_activation=twice")).identity == used.identity
    plugins.use([changed(parts, tmp_path)])
    assert prepare(tiny_config(tmp_path, "hidden_activation=twice")).identity != used.identity
    assert prepare(tiny_config(tmp_path)).identity == without.identity


def test_a_recorded_run_asks_for_its_plugin_and_takes_the_copy(
    parts: Path, done: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy, other = done / "plugins" / "parts" / "parts.py", changed(parts, tmp_path)
    for words in (["evaluate", str(done)], ["train", "--from", str(done), "--plugin", str(other)]):
        assert cli.main(words) == 2
        cures = f"--plugin {copy}", f'segexp.use_plugins("{copy}")'
        assert mentions(capsys.readouterr().err, *cures, "activation=algebraic", "parts.py")
    segexp.use_plugins(other)
    with pytest.raises(UsageError, match=re.escape(str(copy))):
        segexp.load(done)
    segexp.use_plugins(copy)
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    expected = segexp.load(done)(images)
    segexp.use_plugins(parts)
    assert torch.equal(segexp.load(done)(images), expected)


def test_records_are_read_without_the_plugin(done: Path, capsys: Captured, tmp_path: Path) -> None:
    """Options of an entry that is not loaded are all shown, as its defaults are unknown."""
    study, run = str(done.parent), str(done)
    for words in (["status", study], ["collect", study, "-o", str(tmp_path)], ["diff", run, run], ["show", run]):
        assert cli.main([*words, "--plugin", "absent.py"]) == 0
    shown = capsys.readouterr().out
    assert mentions(shown, "activation=algebraic", "activation.power=3.0", "hidden_activation=twice", "loss=powered")
    runs = segexp.read_collected(tmp_path / "runs.csv")
    assert list(runs["plugins"]) == [row_of(run_at(done))["plugins"]]
    assert "activation=algebraic:" in runs["plugins"][0]
    assert not plugins.LOADED


def test_an_arm_is_written_alike_with_and_without_its_plugin(parts: Path, tmp_path: Path) -> None:
    """So that a tuned rate is found for it."""
    plugins.use([parts])
    choices = [
        ("activation=alg", "activation.prior_bias=0.1", "loss=powered", "loss.power=3"),
        (
            "hidden_activation=twice",
            "hidden_activation.scope=encoder",
            "loss=sum",
            "loss.terms={dice: 1, powered: 0.5}",
        ),
        ("activation=algebraic", "activation.form=x"),
        (),
    ]
    configs = [tiny_config(tmp_path, *chosen) for chosen in choices]
    arms = [arm_of(config) for config in configs]
    assert arms[0][1:] == ("algebraic prior_bias=0.1 power=2.0", "powered power=3.0")
    rows = [{column_of(key): cell_of(value) for key, value in flatten(config).items()} for config in configs]
    every = {column: "" for row in rows for column in row}
    for _ in range(2):
        assert [arm_of_row(row) for row in rows] == arms
        assert [arm_of_row(every | row) for row in rows] == arms
        plugins.use([])


def test_versions_of_a_plugin_are_not_pooled(done: Path) -> None:
    """Neither as one arm, nor silently: the plugin was edited between two nights."""
    row = run_at(done).row
    now = row["plugins"].partition(" ")[0].rpartition(":")[2]
    versions = {"1": now, "2": now, "3": "ffffffff"}
    runs = [
        Run(n, "done", done, cells={**row, "run_id": n, "seed": n, "plugins": row["plugins"].replace(now, version)})
        for n, version in versions.items()
    ]
    assert arrange(runs[:2], ["activation"]).levels == {"activation": ("algebraic",)}
    arms = arrange(runs, ["activation"])
    assert arms.levels == {"activation": tuple(sorted([f"algebraic@{now}", "algebraic@ffffffff"]))}
    assert arms.level_of["1"] == arms.level_of["2"] != arms.level_of["3"]
    assert one_mentions(arms.warnings, "activation=algebraic", now, "ffffffff")
    mixed = dataclasses.replace(runs[0], cells={**runs[0].row, "activation_power": "2.0", "run_id": "4"}, run_id="4")
    varied = arrange([mixed, runs[2]], ["activation"])
    *_, named = shlex.split(unanswered(varied, []).partition("example ")[2])
    assert reference_levels(named, varied) == [{"activation": varied.levels["activation"][0]}]


# Sweeps


def planned(overrides: Sequence[str]) -> Plan:
    with hydra_session() as extra:
        plan = make_plan([*TINY, *overrides], extra)
        keep_plan(plan)
    return plan


def test_a_pending_run_says_which_plugin_it_needs(parts: Path, tmp_path: Path) -> None:
    """Its plan records that, as it has no directory yet."""
    plugins.use([parts])
    planned([f"outputs={tmp_path}", "hidden_activation=twice", "loss=dice", "study.name=s"])
    other = changed(parts, tmp_path)
    for loaded, named in {
        (): ("hidden_activation=twice", "parts.py", "--plugin", 'segexp.use_plugins("PATH/parts.py")'),
        (other,): ("has changed (helper.py)", other),
    }.items():
        plugins.use(loaded)
        with hydra_session() as extra, pytest.raises(UsageError) as error:
            resume_plan(tmp_path / "s", [], [], extra)
        assert mentions(error.value, *named)


@pytest.mark.slow
def test_a_study_is_not_resumed_in_part_where_a_plugin_is_missing(parts: Path, tmp_path: Path) -> None:
    plugins.use([parts])
    planned([f"outputs={tmp_path}", "hidden_activation=twice,native", "seed=1,2", "study.name=s"])
    plugins.use([])
    with hydra_session() as extra, pytest.raises(UsageError) as error:
        resume_plan(tmp_path / "s", [], [], extra)
    assert mentions(error.value, "2 unfinished runs", "--plugin", "parts.py")
    plugins.use([parts])
    with hydra_session() as extra:
        assert len(resume_plan(tmp_path / "s", [], [], extra).jobs) == 4


def test_a_worker_refuses_a_run_whose_plugin_has_changed_since_it_was_planned(parts: Path, tmp_path: Path) -> None:
    file, reported = changed(parts, tmp_path, "BY = 2.0\n"), dict[str, Any]()
    plugins.use([file])
    specs = [prepare(tiny_config(tmp_path, f"hidden_activation={name}")) for name in ("twice", "native")]
    payload: dict[str, Any] = {
        "config": dataclasses.asdict(specs[0].config),
        "run_id": specs[0].run_id,
        "plugins": plugins.given(),
    }
    (file.parent / "helper.py").write_text("BY = 2.5\n")
    assert pool.run(payload, reported.update) == REFUSED
    assert mentions(reported["reason"], "plugin", file, "has changed")
    check_planned(prepare(specs[1].config), specs[1].run_id, payload["plugins"])
    (file.parent / "helper.py").write_text("BY = ")
    assert pool.run(payload, reported.update) == REFUSED
    assert mentions(reported["reason"], file.parent / "helper.py", "line 1")
    file.unlink()
    assert pool.run(payload, reported.update) == REFUSED
    assert mentions(reported["reason"], file, "does not exist")


@pytest.mark.slow
def test_a_glob_takes_the_entries_of_plugins_too(parts: Path, tmp_path: Path) -> None:
    """As they are entries like the others: `study=pairs` sweeps over them, since the user named the plugin."""
    words = [f"outputs={tmp_path}", "hidden_activation=glob(*ice)", "loss=glob(pow*)", "activation=glob(alg*)"]
    plugins.use([parts])
    (job,) = planned(words).jobs
    assert job.spec.plugins == {"parts": ["hidden_activation=twice", "activation=algebraic", "loss=powered"]}


# From one file to the report


WHOLE = """
import numpy as np
import torch
from torch import nn

from segexp.plugin import architecture, dataset, hidden_activation, loss, mean_over, output_activation, reference_planes
import shapes


@hidden_activation
class Bent(nn.Module):
    def __init__(self, *, bend: float = 0.5):
        super().__init__()
        self.bend = nn.Parameter(torch.tensor(bend))

    def forward(self, x):
        return x.relu() + self.bend * x.tanh()


@output_activation(gives="probability")
def algebraic(x):
    return 0.5 + x / (2 * (1 + x * x) ** 0.5)


@loss(needs="values")
def squared(prediction, target):
    y_NKHW, valid_NHW = reference_planes(prediction, target)
    return mean_over((prediction.values_NKHW - y_NKHW) ** 2, valid_NHW)


@architecture
class Tiny(nn.Module):
    def __init__(self, in_channels, classes, *, width: int = 8):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU()
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        return self.last(nn.functional.relu(self.second(self.act(self.first(x)))))


@dataset(num_classes=2, image_size=32)
def discs(*, number: int = 24):
    for i in range(number):
        yield shapes.disc(np.random.default_rng(i))
"""
SHAPES = """
import numpy as np


def disc(rng):
    y, x = np.mgrid[:32, :32]
    mask = ((y - rng.integers(8, 24)) ** 2 + (x - rng.integers(8, 24)) ** 2 < 36).astype(np.uint8)
    return (100 * mask + rng.integers(0, 60, (32, 32))).astype(np.uint8), mask
"""


@pytest.mark.slow
def test_one_file_from_the_sweep_to_the_report(write: Write, tmp_path: Path, segexp_: Callable[..., str]) -> None:
    """A sweep with parts of the user's own in five places is killed, resumed, compared and reported, and loaded."""
    file, study = write(whole=WHOLE, shapes=SHAPES), tmp_path / "out" / "own"
    own = ["--plugin", str(file)]
    runs = ["dataset=discs", "model=tiny", "model.width=6", "activation=sigmoid,algebraic", "loss=squared"]
    runs += ["hidden_activation=relu,bent", "seed=range(2)", "trainer.epochs=2", "trainer.batch_size=5"]
    runs += ["trainer.device=cpu", "trainer.workers=1", "outputs=out", "study.name=own", "hydra.launcher.n_jobs=2"]
    assert mentions(segexp_("train", "-m", *runs, "--dry-run", *own), "of 8 runs finished", "estimated")
    sweep = [sys.executable, "-m", "segexp", "--plugin", str(file), "train", "-m", *runs]
    process = subprocess.Popen(sweep, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any('"done"' in path.read_text() for path in study.glob("*/run.json")))
    process.kill()
    process.wait()
    wait_until(lambda: not any(lock_holder(path.parent) for path in study.glob("*/lock")))
    assert mentions(segexp_("resume", str(study), code=2), "whole.py", "--plugin")
    segexp_("resume", str(study), *own, "hydra.launcher.n_jobs=2")
    assert all(read_run(path.parent)["status"] == "done" for path in study.glob("*/run.json"))
    assert len(list(study.glob("*/run.json"))) == 8
    compared = json.loads(segexp_("compare", str(study), "--json"))
    assert len(compared["blocks"]) == 1
    segexp_("report", str(study), "-o", "report.html")
    assert "algebraic" in (tmp_path / "report.html").read_text()
    shutil.rmtree(file.parent)
    (run,) = [path.parent for path in study.glob("*bent-algebraic*s0*/run.json")]
    copy = run / "plugins" / "whole" / "whole.py"
    assert mentions(segexp_("evaluate", str(run), code=2), copy)
    segexp_("evaluate", str(run), "--plugin", str(copy))
    again = segexp_("train", "--from", str(run), "outputs=out", "study.name=own", "--plugin", str(copy))
    assert mentions(again, "already done")
    segexp.use_plugins(copy)
    assert segexp.load(run)(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).shape == (1, 1, 32, 32)
