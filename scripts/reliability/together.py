"""Two of the same command at once, neither of which is disturbed: the work is done once, and nothing differs from one.

The first pauses at a moment, shorter than any lock takes to look stale, while the second goes as far as it can.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from reliability import Ending, fault_class
from reliability.injected import PATIENCE_S, Fault, begin, end
from reliability.interruptions import OTHERS, judged, prepare, undisturbed
from reliability.interruptions import begin as made_from

OFTEN = ("train without last.pt",) * 6 + ("train two runs",) * 2 + ("predict", "evaluate") * 3 + OTHERS
"""From these a case draws: more often what holds a lock."""

SECOND_S = 25.0
"""How long the first waits for the second, which may wait for the first."""

REFUSALS = ("is being written by", "in use by")


@fault_class("the same command twice at once, the first of which pauses at any moment", 300, prepare)
def together(draw: random.Random, made: Path, own: Path) -> Ending:
    activity = draw.choice(OFTEN)
    words = made_from(activity, made, own)
    at = draw.randint(1, undisturbed(activity, made)["calls"])
    first = begin(words, Fault("stop", at), own, "said.first")
    _wait(PATIENCE_S, lambda: _state(first) in ("T", ""))
    second = begin(words, Fault(), own, "said.second")
    _wait(SECOND_S, lambda: not _state(second) or "waiting for" in _said_second(own))
    with suppress(ProcessLookupError):
        os.kill(first.pid, signal.SIGCONT)
    said = [end(process, own, said=f"said.{name}") for process, name in ((first, "first"), (second, "second"))]
    place = (said[0][1][at - 1 : at] or ["a call that did not come"])[0]
    how = f"the first pauses at {place}"
    what = f"{activity}: {how}"
    seen = "\n".join(f"{name}: exit code {one.code} {one.fault} {one.err[-500:]}"
                     for name, (one, _) in zip(("first", "second"), said, strict=True))  # fmt: skip
    for one, _ in said:
        if one.fault:
            return Ending(one.fault.partition(":")[0], what, seen)
        refused = one.code == 2 and any(line in one.err for line in REFUSALS)
        if "taken over" in one.err or not (one.code == 0 or refused):
            return Ending("lost", what, f"work was done twice, or not at all\n{seen}")
    if all(one.code for one, _ in said):
        return Ending("lost", what, f"each refused because of the other\n{seen}")
    tried = [json.loads(path.read_text(encoding="utf-8"))["attempts"] for path in own.glob("outputs/*/*/run.json")]
    if any(number != 1 for number in tried):
        return Ending("lost", what, f"a run was begun {max(tried)} times\n{seen}")
    ending = judged(activity, how, made, own, said[0][0])
    refused = any(one.code for one, _ in said)
    return Ending("refused", ending.what, seen) if ending.how == "same" and refused else ending


def _wait(most_s: float, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + most_s
    while not until() and time.monotonic() < deadline:
        time.sleep(0.02)


def _state(process: Any) -> str:
    """T for a stopped process, nothing for one that has ended."""
    try:
        found = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return "" if found in "ZX" else found


def _said_second(own: Path) -> str:
    files = (own / f"said.second.{name}" for name in ("out", "err"))
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files if file.exists())
