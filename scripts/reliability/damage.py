"""Files of a run that were damaged or edited: nothing that reads them may report another result in silence."""

import difflib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability import Ending, Said, fault_class, files, runs_of, said_by, study


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def _flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 8))):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _remove(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randint(1, 64) :]


def _insert(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return (
        data[:start] + draw.choice((b"\0", b"\xff\xfe", b"\n", b",", b"nan", b"1e999", b"=1+1", b"../")) + data[start:]
    )


def _digit(draw: random.Random, data: bytes) -> bytes:
    """Another digit, or a byte flipped where there is none."""
    places = [n for n, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return _flip(draw, data)
    place = draw.choice(places)
    other = draw.choice([d for d in b"0123456789" if d != data[place]])
    return data[:place] + bytes((other,)) + data[place + 1 :]


def _line(draw: random.Random, data: bytes) -> bytes:
    """A line removed, doubled, or moved to the end."""
    lines = data.splitlines(keepends=True)
    chosen = draw.randrange(len(lines))
    how = draw.choice(("gone", "twice", "last"))
    rest = lines[:chosen] + lines[chosen + 1 :]
    return b"".join({"gone": rest, "twice": [*lines, lines[chosen]], "last": [*rest, lines[chosen]]}[how])


def _nothing(draw: random.Random, data: bytes) -> bytes:
    return b""


DAMAGE: tuple[Callable[[random.Random, bytes], bytes], ...] = (_cut, _flip, _remove, _insert, _digit, _line, _nothing)

READERS = (["compare", "{study}", "--json"], ["status", "{study}"], ["show", "{run}"], ["evaluate", "{run}"])
"""All that read a finished run; {run} is the damaged one."""


def result_of(said: Said, words: list[str], own: Path) -> list[str]:
    """What a command says of results, line by line: all it prints without paths and sizes of files, and the widths of
    columns with these; of JSON without the warnings, which `told` has."""
    text = said.out
    if "--json" in words and said.code == 0:
        text = json.dumps(json.loads(text, object_hook=_unwarned), indent=1)
    shown = re.sub(r"[\d.,]+ [KMG]?i?B\b", "SIZE", text.replace(str(own), "OWN"))
    return [re.sub(r"-{3,}", "---", re.sub(r"\s+", " ", line)) for line in shown.splitlines()]


def _unwarned(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ("warnings", "provenance")}


def told(said: Said, words: list[str]) -> list[str]:
    """The warnings and errors of a command."""
    lines = said.err.splitlines()
    if "--json" in words and said.code == 0:
        found: list[str] = []
        json.loads(said.out, object_hook=lambda content: found.extend(map(str, content.get("warnings", ()))))
        return lines + found
    return lines + re.findall(r"(?m)^(?:problem:|unreadable) .*", said.out)


@fault_class("a file of a run cut, edited, or with flipped bits, then read by every command", 1500, study)
def damage(draw: random.Random, prepared: Path, own: Path) -> Ending:
    for copy in ("whole", "damaged"):
        shutil.copytree(prepared / "outputs", own / copy, symlinks=True)
    run = draw.choice(runs_of(own / "damaged"))
    victim = run / draw.choice(sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()))
    command, how = draw.choice(READERS), draw.choice(DAMAGE)
    words = [word.format(study=own / "damaged" / "s", run=run) for word in command]
    whole = said_by([word.format(study=own / "whole" / "s", run=own / "whole" / "s" / run.name) for word in command])
    data = victim.read_bytes()
    victim.write_bytes(how(draw, data) if data else b"x")
    what = f"{how.__name__.strip('_')} {run.name}/{victim.relative_to(run)}, then {command[0]}"
    before = files(prepared / "outside")
    said = said_by(words)
    seen = f"exit code {said.code}\n{said.err[-600:]}"
    if said.fault:
        return Ending(said.fault.partition(":")[0], what, f"{said.fault}\n{seen}")
    if files(prepared / "outside") != before:
        return Ending("escape", what, seen)
    if said.code != 0:
        refused = said.code in (1, 2) and bool(said.err.strip())
        return Ending("refused" if refused else "lie", what, seen)
    found, true = result_of(said, command, own / "damaged"), result_of(whole, command, own / "whole")
    if found == true:
        return Ending("same", what)
    warned = told(said, command) != told(whole, command)
    return Ending("reported" if warned else "lie", what, "\n".join(difflib.unified_diff(true, found, lineterm="", n=0)))
