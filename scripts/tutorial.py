"""Run the commands of docs/tutorial.md in their order, and write what they print and draw into the page.

    python scripts/tutorial.py --update      every output, the pictures in docs/tutorial/, and the table of times
    python scripts/tutorial.py --check       at tiny sizes: every command succeeds, tables have the columns of the page

A text block below a bash block is the output of that block. A comment between them says which part of it:
`<!-- shows: first | ?warning | Comparisons -->` the first paragraph and those that begin so (? where there is one),
`<!-- shows: 6 lines -->` the first lines. A picture below `<!-- picture: GLOB -->` is the newest file of that name; of
an HTML page, a screenshot by Chromium.
"""

import argparse
import io
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "tutorial.md"

WIDTH, HEIGHT, QUALITY = 720, 792, 55
"""Of the pictures (WebP), at most; of taller ones the top is shown. All of them together stay below 400 kB."""

TINY = (
    "trainer.epochs=1 trainer.device=cpu trainer.batch_size=4 model.encoder_depth=3 model.decoder_channels=[8,8,8] "
    "backbone.name=tu-test_resnet"
)
"""What --check appends to the settings of every training."""

PARTS = re.compile(
    r"^## (?P<step>.+?)$"
    r"|^```bash\n(?P<bash>.*?)^```$"
    r"|(?P<before>^(?:<!-- shows: (?P<shows>.+?) -->\n)?^```text\n)(?P<text>.*?)^```$"
    r"|(?P<above>^<!-- picture: (?P<glob>.+?) -->\n!\[.*?\]\((?P<file>.*?)\))"
    r"|^<!-- times -->\n(?P<times>.*?)^<!-- end -->$",
    re.MULTILINE | re.DOTALL,
)
"""What the script acts on, in the order of the page; the rest is prose."""


class Reader:
    """Somebody who types the page's commands in a new folder."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        self.folder, self.tiny, self.times = folder, tiny, list[tuple[str, float]]()
        (folder / ".bin").mkdir()
        command = folder / ".bin" / "segexp"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m segexp "$@"\n')
        command.chmod(0o755)

    def types(self, block: str, step: str) -> str:
        """The standard output of a bash block. Raises SystemExit where a command fails."""
        if self.tiny:
            block = re.sub(r"number=\d+", "number=24", block).replace("range(5)", "range(3)")
            block = re.sub(r"trainer\.epochs=\d+", TINY, block)
        path = f"{self.folder / '.bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "150"}
        started = time.monotonic()
        words = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        self.times.append((step, time.monotonic() - started))
        if done.returncode:
            raise SystemExit(f"exit code {done.returncode}:\n{block}\n{done.stdout}\n{done.stderr}")
        return done.stdout.replace(f"{self.folder}/", "").rstrip()


def shown(output: str, wanted: str) -> str:
    """The part of an output that the page shows. Raises SystemExit where it has no such part."""
    if lines := re.fullmatch(r"(\d+) lines", wanted):
        return "\n".join([*output.splitlines()[: int(lines[1])], "..."])
    paragraphs = output.split("\n\n")
    parts = []
    for begin in wanted.split(" | ") if wanted else ():
        found = paragraphs[:1] if begin == "first" else [one for one in paragraphs if one.startswith(begin.lstrip("?"))]
        if not found and not begin.startswith("?"):
            raise SystemExit(f"nothing begins with {begin!r} in the output:\n{output}")
        parts += found[:1]
    return "\n\n".join(parts) if wanted else output


def headers(text: str) -> list[str]:
    """The columns of the tables of a text: the words of the line above each line of dashes."""
    lines = text.splitlines()
    return [
        " ".join(above.split()) for above, below in itertools.pairwise(lines) if re.fullmatch(r"[- ]*--[- ]*", below)
    ]


def newest(folder: Path, wanted: str) -> Path:
    """The newest file that fits a path pattern. Raises SystemExit where there is none."""
    found = sorted(folder.glob(wanted), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit(f"no file {wanted}")
    return found[-1]


def picture(path: Path) -> bytes:
    """A picture, or the top of a page, as a small WebP."""
    content = screenshot(path) if path.suffix == ".html" else path.read_bytes()
    image: Image.Image = Image.open(io.BytesIO(content))
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    elif image.width < 256:
        image = image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST)
    image = image.crop((0, 0, image.width, min(image.height, HEIGHT)))
    small = io.BytesIO()
    image.convert("RGB").save(small, "WEBP", quality=QUALITY, method=6)
    return small.getvalue()


def screenshot(page: Path) -> bytes:
    """The top of an HTML page, as a reader with a small window sees it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1000, "height": 1100})
        tab.goto(page.as_uri())
        return tab.screenshot()


def machine() -> str:
    """The processor, and how many cores a process may use."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    return f"{len(os.sched_getaffinity(0))} cores of {model[1] if model else 'a processor of unknown name'}"


def carried_out(text: str, folder: Path, update: bool) -> str:
    """The page after its commands were run in ``folder``. Raises SystemExit where one fails, or prints other tables."""
    reader = Reader(folder, tiny=not update)
    step = output = ""

    def act(part: re.Match[str]) -> str:
        nonlocal step, output
        if part["step"]:
            step = part["step"]
        elif part["bash"] and not part["bash"].startswith("pip"):
            output = reader.types(part["bash"], step)
        elif part["text"] is not None:
            new = shown(output, part["shows"] or "")
            if not update and part["text"] and headers(new) != headers(part["text"]):
                raise SystemExit(f"the page shows other tables:\n{headers(part['text'])}\nnow:\n{headers(new)}")
            return f"{part['before']}{new}\n```"
        elif part["glob"]:
            drawn = newest(folder, part["glob"])
            if update:
                (PAGE.parent / part["file"]).write_bytes(picture(drawn))
        elif part["times"] is not None and update:
            return f"<!-- times -->\n{times(reader)}\n<!-- end -->"
        return part[0]

    return PARTS.sub(act, text)


def times(reader: Reader) -> str:
    """A Markdown table of the minutes that each step took."""
    seconds: dict[str, float] = {}
    for step, each in reader.times:
        seconds[step] = seconds.get(step, 0.0) + each
    rows = [f"| {step} | {each / 60:.1f} |" for step, each in (*seconds.items(), ("all", sum(seconds.values())))]
    return "\n".join([f"Measured on {machine()}:\n", "| step | minutes |", "| --- | --- |", *rows])


def main() -> int:
    """Exit code 0, or SystemExit with what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--update", action="store_true")
    what.add_argument("--check", action="store_true")
    update = parser.parse_args().update
    (PAGE.parent / "tutorial").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        text = carried_out(PAGE.read_text(encoding="utf-8"), Path(folder), update)
    if update:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
