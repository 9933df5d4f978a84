"""Plugins that change under a run, fail wherever they are called, or are installed and not named.

A run is continued and used with the plugin that it began with, or not at all; a plugin that fails ends its run with a
line that names its file; and only plugins that the command names are loaded.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from reliability import STUDY, Ending, ended, fault_class, said_by
from reliability.damage import DAMAGE
from reliability.store import TRAINS_S
from segexp.records import read_run, write_run

PLUGIN = """\
import helper
from segexp.plugin import hidden_activation, loss, mean_over, output_activation, reference_planes, score
CALLS = {"hidden": 0, "output": 0, "loss": 0, "score": 0}
def called(name):
    CALLS[name] += 1
#import
@hidden_activation(range="[0, inf)")
def my_relu(x):
    called("hidden")
    #hidden
    return x.relu() * helper.SLOPE
@output_activation(gives="probability")
def my_sigmoid(x):
    called("output")
    #output
    return x.sigmoid()
@loss(needs="values")
def my_loss(prediction, target):
    called("loss")
    #loss
    y, valid = reference_planes(prediction, target)
    return mean_over((prediction.values_NKHW - y) ** 2, valid)
@score
def my_score(predicted, reference, valid, probability):
    called("score")
    #score
    return 0.5
"""
WORDS = (
    *("train", "hidden_activation=my_relu", "activation=my_sigmoid", "loss=my_loss", "trainer.keep_last=true"),
    *(word for word in STUDY if not word.startswith(("activation=", "seed=", "loss="))),
)


def _train(own: Path, *more: str) -> list[str]:
    return [*WORDS, f"outputs={own / 'outputs'}", *more]


def prepare(made: Path) -> None:
    """A plugin, and a run that used it and seems to have been stopped before its end."""
    from PIL import Image

    (made / "mine.py").write_text(PLUGIN, encoding="utf-8")
    (made / "helper.py").write_text("SLOPE = 1.0\n", encoding="utf-8")
    Image.effect_mandelbrot((32, 32), (-2, -1.5, 1, 1.5), 20).save(made / "x.png")
    said = said_by(_train(made, "--plugin", str(made / "mine.py")), seconds=TRAINS_S)
    if said.code != 0:
        raise RuntimeError(f"the run was not made: {said}")


def _run(own: Path) -> Path:
    return min((own / "outputs" / "s").glob("lesions-*"))


def _tables(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("*.csv") if path.name != "timings.csv"}


def _odd(draw: random.Random, own: Path, plugin: Path) -> str:
    """Change the plugin's files; how."""
    how = draw.choice(("remark", "helper", "helper gone", "gone", "renamed", "folder", "damaged", "slope", "other"))
    if how in ("remark", "slope", "other"):
        text = {"remark": f"{PLUGIN}# a remark\n", "slope": PLUGIN.replace("* helper.SLOPE", "* 0.5"),
                "other": PLUGIN.replace("x.sigmoid()", "0.5 + x.atan() / 3.2")}[how]  # fmt: skip
        plugin.write_text(text, encoding="utf-8")
    elif how == "helper":
        (plugin.parent / "helper.py").write_text("SLOPE = 0.5\n", encoding="utf-8")
    elif how == "damaged":
        plugin.write_bytes(draw.choice(DAMAGE)(draw, plugin.read_bytes()))
    elif how == "renamed":
        plugin.rename(plugin.with_name("renamed.py"))
    else:
        victim = plugin.parent / "helper.py" if how == "helper gone" else plugin
        victim.unlink()
        if how == "folder":
            plugin.mkdir()
    return how


def _changed(draw: random.Random, own: Path) -> Ending:
    """The plugin of a run that was stopped is changed, then the run is continued or used."""
    run = _run(own)
    uses = (["resume", str(run.parent)], ["evaluate", str(run), "--split", "val"], ["train", "--from", str(run)],
            ["predict", str(run), str(own / "x.png"), "-o", str(own / "masks")], _train(own))  # fmt: skip
    words, plugin = draw.choice(uses), draw.choice((own / "mine.py", run / "plugins" / "mine" / "mine.py"))
    if words[0] in ("resume", "train"):
        write_run(run, read_run(run) | {"status": "interrupted"})
    if words[1] == "--from":
        words += [f"outputs={own / 'outputs'}"]
    true, before = _tables(run), (run / "run.json").read_bytes()
    how, named = _odd(draw, own, plugin), draw.random() < 0.85
    plugin = plugin if plugin.exists() else plugin.with_name("renamed.py") if how == "renamed" else plugin
    said = said_by([*words, *(["--plugin", str(plugin)] if named else [])], seconds=TRAINS_S)
    what = f"{plugin.relative_to(own).parts[0]}: {how}, then {' '.join(words[:2])}{'' if named else ', not named'}"
    ending = ended(said, what)
    if ending.how != "same":
        return ending
    anew = words == _train(own) and (run / "run.json").read_bytes() == before  # another run
    same = words[0] == "resume" and "0 to run" in said.out
    if anew or same or (how == "damaged" and _tables(run) == true):
        return Ending("same", what, said.out[-300:])
    return Ending("lie", what, f"the run was used with another plugin\n{said.out[-800:]}{said.err[-300:]}")


_UNPRINTABLE = "type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()"
RAISED = (
    *("raise ValueError('a fault')", "raise ValueError('two\\nlines')", "raise ValueError('x' * 10**6)", "1 / 0"),
    *("raise SystemExit(0)", "raise SystemExit('bye')", "raise RecursionError", "raise MemoryError", "assert False"),
    *("raise StopIteration", "raise GeneratorExit", "raise OSError(28, 'No space left')", "raise BaseException"),
    *("raise KeyError('\\x1b[2J')", f"raise {_UNPRINTABLE}", "return None", "raise FileNotFoundError(2, 'gone', 'x')"),
    *("raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'odd')", "raise TimeoutError"),
    *("__import__('os')._exit(0)", "__import__('os')._exit(3)"),
)


def _fails(draw: random.Random, own: Path) -> Ending:
    """A part fails at one of its calls; so does the plugin where it is imported."""
    hook, raised = draw.choice(("import", "hidden", "output", "loss", "score")), draw.choice(RAISED)
    at = draw.choice((1, 2, 5, 20, 50))
    line = raised if hook == "import" else f"if CALLS['{hook}'] >= {at}: {raised}"
    line = "raise ValueError" if hook == "import" and raised.startswith("return") else line
    (own / "mine.py").write_text(PLUGIN.replace(f"#{hook}", line), encoding="utf-8")
    shutil.rmtree(own / "outputs")
    command = draw.choice(
        (_train(own, "metrics.scores=[my_score]"),) * 3 + (["list", "losses"], _train(own, "--dry-run"))
    )
    said = said_by([*command, "--plugin", str(own / "mine.py")], seconds=TRAINS_S)
    what = f"{hook} fails at call {at} with {raised[:60]!r}, then {command[0]} {command[-1]}"
    ending = ended(said, what)
    states = [json.loads(path.read_text(encoding="utf-8"))["status"] for path in own.glob("outputs/*/*/run.json")]
    if ending.how in ("same", "refused") and "running" in states:
        return Ending("lost", what, f"the run seems to run\n{ending.seen}")
    if ending.how == "refused" and "mine.py" not in said.err + said.out:
        return Ending("traceback", what, f"nothing names the plugin\n{ending.seen}")
    return ending


def _installed(draw: random.Random, own: Path) -> Ending:
    """Packages that offer plugins, as many ways as there are, and a command that names none."""
    site = own / "site"
    for name in draw.sample(("evil", "my_relu", "segexp_evil", "arctan"), 2):
        (site / name).mkdir(parents=True)
        code = f"open({str(own / 'executed')!r}, 'w').close()\n{PLUGIN.replace('import helper', '')}"
        (site / name / "__init__.py").write_text(code, encoding="utf-8")
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        groups = ("segexp.plugins", "segexp", "console_scripts", "hydra_plugins", "pytest11", "torch.backends")
        points = "".join(f"[{group}]\n{point} = {name}\n" for group in groups for point in (name, "my_relu"))
        (info / "entry_points.txt").write_text(points, encoding="utf-8")
    run = _run(own)
    commands = (
        *(_train(own, "--dry-run"), ["list", "losses"], ["train", "activation=my_relu", "--dry-run"], ["doctor"]),
        *(["evaluate", str(run)], ["resume", str(run.parent)], ["status", str(own / "outputs")], ["show", str(run)]),
        *(["compare", str(run.parent)], ["train", "--from", str(run), "--dry-run"], ["list", "hidden_activations"]),
    )
    words = draw.choice(commands)
    sys.path.insert(0, str(site))
    try:
        said = said_by(words, seconds=TRAINS_S)
    finally:
        sys.path.remove(str(site))
    what = f"plugins are installed, then {' '.join(words[:2])}"
    if (own / "executed").exists():
        return Ending("escape", what, "a plugin was loaded that nobody named")
    return ended(said, what)


WAYS: tuple[Callable[[random.Random, Path], Ending], ...] = (_changed, _changed, _fails, _fails, _installed)


@fault_class("plugins changed under a run, failing at any call, or installed and not named", 1000, prepare)
def plugins(draw: random.Random, made: Path, own: Path) -> Ending:
    shutil.copytree(made, own, dirs_exist_ok=True)
    return draw.choice(WAYS)(draw, own)
