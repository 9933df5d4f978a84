"""Ways in that nobody was asked for: links in run directories, code in text, plugins that lie about.

A page shows text as text, a link in a run directory is never followed, and only code that the command names is run.
"""

import html.parser
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from reliability import Ending, ended, fault_class, runs_of, said_by, study

CODE = "open('executed', 'w').close()\n"
PLUGIN = f"{CODE}from segexp.plugin import activation\n"
HOSTILE = (
    *(
        "<script>evil()</script>",
        "<img src=x onerror=evil()>",
        "</script><script>evil()</script>",
        "<svg onload=evil()>",
    ),
    *('" onmouseover="evil()', "' autofocus onfocus='evil()", "<!--", "]]>", "</title><script>evil()</script>"),
    *("[x](javascript:evil())", "<a href=javascript:evil()>x</a>", "{{ 7 * 7 }}", "{% raw %}", "<iframe src=//evil>"),
    *("&lt;script&gt;", "\u202e<script>", "<style>@import '//evil'</style>", "<base href=//evil>", "${evil}", "`evil`"),
)


def _link(draw: random.Random, own: Path) -> tuple[list[str], str]:
    """A file or folder of a run, moved out of the folder of outputs, with a link in its place."""
    run = draw.choice(runs_of(own / "outputs"))
    victims = [path for path in sorted(run.rglob("*")) if path.name not in ("log.txt", "timings.csv")]
    victim = draw.choice(victims)
    (own / "elsewhere").mkdir()
    elsewhere = own / "elsewhere" / f"untouched-{victim.name}"  # a name that is listened for
    victim.rename(elsewhere)
    victim.symlink_to(elsewhere)
    readers: list[list[str]] = [["compare", str(run.parent)], ["show", str(run)], ["evaluate", str(run)]]
    readers += [
        ["collect", str(run.parent)],
        ["report", str(run.parent), "-o", "page.html"],
        ["predict", str(run), "x.png", "-o", "masks"],
    ]
    return draw.choice(readers), f"{victim.relative_to(run)} is a link"


def _text(draw: random.Random, own: Path) -> tuple[list[str], str]:
    """Another program's table and a note, with HTML and scripts for names."""
    first, second, case = draw.sample(HOSTILE, 3)
    quoted = [f'"{name}"' for name in (first.replace('"', '""'), second.replace('"', '""'), case.replace('"', '""'))]
    rows = [f"{quoted[arm]},{seed},{quoted[2][:-1]}{image}\",{draw.random():.4f}"
            for arm in (0, 1) for seed in range(3) for image in range(6)]  # fmt: skip
    (own / "table.csv").write_text("\n".join(["model,run,case,score", *rows]) + "\n", encoding="utf-8")
    (own / "note.md").write_text("\n\n".join(draw.sample(HOSTILE, 6)), encoding="utf-8")
    columns = "arm=model,seed=run,image=case,score=score"
    return ["report", "table.csv", "--columns", columns, "--note", "note.md", "-o", "page.html"], f"{first}, {second}"


def _plugin(draw: random.Random, own: Path) -> tuple[list[str], str]:
    """Files with code where a careless program would import them."""
    run = runs_of(own / "outputs")[0]
    places = (own, own / "outputs", run.parent, run, run / "plugins", run / "plugins" / "mine", own / "configs")
    names = ("plugin.py", "segexp_plugin.py", "conftest.py", "__init__.py", "arctan.py", "sitecustomize.py", "mine.py")
    for place in draw.sample(places, 3):
        place.mkdir(parents=True, exist_ok=True)
        for name in draw.sample(names, 4):
            (place / name).write_text(PLUGIN, encoding="utf-8")
    commands = (
        *(["compare", str(run.parent)], ["show", str(run)], ["evaluate", str(run), "--split", "val"]),
        *(["list", "activations"], ["report", str(run.parent), "-o", "page.html"], ["status", "outputs"]),
        *(["train", "--dry-run", "activation=mine"], ["train", "--dry-run", "--config-dir", "configs"]),
    )
    return list(draw.choice(commands)), "files with code lie about"


def _target(draw: random.Random, own: Path) -> tuple[list[str], str]:
    """Records and configurations that name code, as Hydra's instantiate would call it."""
    run = runs_of(own / "outputs")[0]
    named = draw.choice(("_target_: os.system", "_target_: builtins.exec", "!!python/object/apply:os.system"))
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8")
    block = draw.choice((f"{named}\n", f"evil:\n  {named}\n  _args_: ['touch executed']\n"))
    config.write_text(draw.choice((block + text, text + block)), encoding="utf-8")
    readers = (
        *(["evaluate", str(run)], ["show", str(run)], ["predict", str(run), "x.png", "-o", "masks"]),
        *(["train", "--from", str(run), "--dry-run"], ["export", str(run), "--format", "safetensors", "-o", "w"]),
    )
    return list(draw.choice(readers)), f"config.yaml holds {block!r}"


WAYS: tuple[Callable[[random.Random, Path], tuple[list[str], str]], ...] = (
    _link,
    _link,
    _text,
    _text,
    _plugin,
    _target,
)


class _Page(html.parser.HTMLParser):
    """Collects what would run or load: its scripts, handlers and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        for name, value in attrs:
            if name.startswith("on") or (name in ("src", "href") and "evil" in (value or "")):
                self.active.append(f"<{tag} {name}={value}>")
        if tag in ("iframe", "base", "object", "embed"):
            self.active.append(f"<{tag}>")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style") and ("evil()" in data or "//evil" in data):
            self.active.append(f"<{self.inside}>{data[:80]}")


@fault_class("links in run directories, HTML in names, code that lies about or is named", 1500, study)
def entrances(draw: random.Random, prepared: Path, own: Path) -> Ending:
    from PIL import Image

    shutil.copytree(prepared / "outputs", own / "outputs")
    Image.effect_mandelbrot((32, 32), (-2, -1.5, 1, 1.5), 20).save(own / "x.png")
    way = draw.choice(WAYS)
    words, how = way(draw, own)
    what = f"{way.__name__.strip('_')}: {how}, then {' '.join(words[:2])}"
    said = said_by(words, own)
    if list(own.rglob("executed")):
        return Ending("escape", what, "code was run")
    if (page := own / "page.html").exists():
        parser = _Page()
        parser.feed(page.read_text(encoding="utf-8"))
        if parser.active:
            return Ending("escape", what, f"the page would run {parser.active[:3]}")
    return ended(said, what)
