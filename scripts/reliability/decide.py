"""`segexp decide`, killed at any moment of its looks, given again, and with its record edited: one verdict, no look
twice, and no other answer in silence.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from reliability import STUDY, Ending, ended, fault_class, said_by
from reliability.damage import DAMAGE
from reliability.injected import Fault, injected
from reliability.readers import edited_json

WORDS = (
    *("decide", "--looks", "3,4,5", "activation=sigmoid,arctan", "trainer.figures=false"),
    *(word for word in STUDY if not word.startswith(("activation=", "seed="))),
)
OF_THE_MOMENT = ("date", "hours", "created", "command", "sha256")
LOOKED = ("decision.json", ".decide", ".compared.json", "report.html")


def _words(own: Path) -> list[str]:
    return [*WORDS, f"outputs={own / 'outputs'}"]


def _record(own: Path) -> list[dict[str, Any]]:
    """The design and the looks, without what depends on the moment."""
    entries = json.loads((own / "outputs" / "s" / "decision.json").read_text(encoding="utf-8"))
    return [{key: value for key, value in one.items() if key not in OF_THE_MOMENT} for one in entries]


def _verdict(out: str) -> list[str]:
    """What is said of the arms."""
    return [line for line in out.splitlines() if "repeated interval" in line or line.startswith(("look ", "runs: "))]


def prepare(made: Path) -> None:
    """A decided study in ``decided``; in ``begun`` its runs alone; the calls of a decision from there in ``calls``."""
    (made / "trained").mkdir()
    for words in (_words(made / "trained"), ["collect", str(made / "trained" / "outputs" / "s")]):
        said = said_by(words, seconds=300)
        if said.code != 0:
            raise RuntimeError(f"the study was not decided: {said}")
    shutil.copytree(made / "trained", made / "begun")
    for name in LOOKED:
        path = made / "begun" / "outputs" / "s" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copytree(made / "begun", made / "decided")
    said, calls, _ = injected(_words(made / "decided"), Fault(), made / "decided")
    if said.code != 0:
        raise RuntimeError(f"the runs at hand were not decided: {said}")
    (made / "calls.json").write_text(json.dumps({"calls": len(calls), "out": said.out}), encoding="utf-8")


def _killed(draw: random.Random, made: Path, own: Path) -> Ending:
    """Killed up to three times, then given twice."""
    known = json.loads((made / "calls.json").read_text(encoding="utf-8"))
    shutil.copytree(made / "begun" / "outputs", own / "outputs")
    places = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        said, calls, _ = injected(_words(own), Fault("kill", draw.randint(1, known["calls"])), own)
        places.append(" ".join(calls[-1:]))
        if said.fault:
            return Ending(said.fault.partition(":")[0], f"killed at {places}", said.err[-800:])
    what = f"killed at {'; '.join(places)}"
    said, _, _ = injected(_words(own), Fault(), own)
    if said.code != 0 or said.fault:
        return Ending("lost", what, f"exit code {said.code}\n{said.fault}{said.err[-800:]}")
    if _record(own) != _record(made / "decided"):
        return Ending("lie", what, f"{_record(own)}\n{said.out[-800:]}")
    if _verdict(said.out)[-2:] != _verdict(known["out"])[-2:]:
        return Ending("lie", what, said.out[-1500:])
    litter = [path.name for path in own.rglob("*") if path.name.endswith(".partial") or path.name.startswith(".owner-")]
    return Ending("litter" if litter else "same", what, str(litter) if litter else "")


def _edited(draw: random.Random, made: Path, own: Path) -> Ending:
    """The record edited, damaged, taken back, or removed, then read by any command."""
    shutil.copytree(made / "decided" / "outputs", own / "outputs")
    study = own / "outputs" / "s"
    file, counted = study / "decision.json", study / ".decide" / "looks"
    ways = ("edited", "edited", "edited", "damaged", "a look less", "gone", "count less", "count gone", "untouched")
    how = draw.choice(ways)
    text = file.read_text(encoding="utf-8")
    if how == "edited":
        file.write_bytes(edited_json(draw, text).encode("utf-8", "surrogatepass"))
    elif how == "damaged":
        file.write_bytes(draw.choice(DAMAGE)(draw, file.read_bytes()))
    elif how == "a look less":
        entries = json.loads(text)
        file.write_text(json.dumps(entries[: draw.randrange(1, len(entries))]), encoding="utf-8")
    elif how == "gone":
        file.unlink()
    elif how == "count less":
        counted.write_text("000", encoding="utf-8")
    elif how == "count gone":
        counted.unlink()
    readers = (_words(own), ["compare", str(study)], ["report", str(study), "-o", str(own / "page.html")],
               ["collect", str(study), "-o", str(own / "out")])  # fmt: skip
    words = draw.choice(readers)
    before = file.read_bytes() if file.exists() else b""
    said = said_by(words, seconds=60)
    what = f"{how}, then {words[0]}"
    ending = ended(said, what)
    if ending.how != "same":
        return ending
    if file.exists() and file.read_bytes() != before:
        return Ending("lie", what, f"the record has changed\n{said.out[-800:]}")
    true = said_by([word.replace(str(own), str(made / "decided")) for word in words], seconds=60)
    said_now, said_then = (one.out.replace(str(where), "OWN") for one, where in ((said, own), (true, made / "decided")))
    if said_now == said_then:
        return Ending("same", what)
    return Ending("reported" if said.err != true.err else "lie", what, f"{said_now[-800:]}\n---\n{said_then[-800:]}")


@fault_class("a decision killed at any moment, given again, and with its record edited", 500, prepare)
def decide(draw: random.Random, made: Path, own: Path) -> Ending:
    return draw.choice((_killed, _edited))(draw, made, own)
