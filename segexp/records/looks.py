"""Looks at a study: which seeds were compared, noted in ``<study>/.compared.json``, so that a later look recognises
seeds that were added since. Adding seeds and testing again until something is significant raises false alarms."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segexp.errors import UsageError
from segexp.records import write_json
from segexp.records.decision import checksums
from segexp.records.files import read_json
from segexp.records.formatting import pluralize
from segexp.records.runs import Run

FILE = ".compared.json"


def look(runs: Sequence[Run], arm_of: Callable[[Run], str], fewest: int) -> list[str]:
    """Note the seeds of each arm in every study of the runs, and return warnings about seeds added after a test.

    arm_of: the arm of a run; fewest: seeds that make a test. Seeds planned at an earlier look are no addition.
    Collected tables have no study to note a look in; what cannot be read or written is a warning too.
    """
    studies: dict[Path, dict[str, list[Run]]] = {}
    for run in runs:
        if not run.collected and run.row.get("config_seed"):
            arm = f"{arm_of(run)} on {run.row.get('config_dataset_name', '')}"
            studies.setdefault(run.path.parent, {}).setdefault(arm, []).append(run)
    warnings = []
    for study, arms in studies.items():
        now = {
            arm: sorted({int(run.row["config_seed"]) for run in of_arm})
            for arm, of_arm in sorted(arms.items())
            if len({run.row["config_seed"] for run in of_arm if run.state == "done"}) >= fewest
        }
        try:
            looks = _read(study / FILE)
            # One arm alone is compared with nothing.
            if len(now) > 1 and all(one["seeds"] != now for one in looks):
                moment = datetime.now(UTC).isoformat(timespec="seconds")
                looks_now = [*looks, {"date": moment, "seeds": now}]
                sums = checksums(looks_now)
                write_json(study / FILE, [one | {"sha256": of} for one, of in zip(looks_now, sums, strict=True)])
        except (OSError, UsageError) as error:
            warnings.append(f"{study / FILE}: this look was not noted, so seeds added later go unnoticed ({error})")
        else:
            warnings += _added(looks, now)
    return warnings


def _read(path: Path) -> list[dict[str, Any]]:
    """The earlier looks. Raises UsageError for a file that does not hold looks."""
    if not path.exists():
        return []
    looks = read_json(path)
    known = isinstance(looks, list) and all(
        isinstance(one, dict) and isinstance(one.get("seeds"), dict) and isinstance(one.get("date"), str)
        and all(isinstance(seeds, list) for seeds in one["seeds"].values())
        and all(isinstance(seed, int) for seeds in one["seeds"].values() for seed in seeds)
        for one in looks
    )  # fmt: skip
    if not known:
        raise UsageError(f"{path} is no list of looks: remove it")
    given = [one.pop("sha256", None) for one in looks]  # earlier versions wrote none
    if any(one not in (None, of) for one, of in zip(given, checksums(looks), strict=True)):
        raise UsageError("it was changed after segexp wrote it: restore it, or remove it and add no more seeds")
    return looks


def _added(looks: Sequence[dict[str, Any]], now: dict[str, list[int]]) -> list[str]:
    """A warning where an arm has seeds that an earlier look did not have; the seeds of the first look are named."""
    for one in looks:
        added = {arm: sorted(set(seeds) - set(one["seeds"][arm])) for arm, seeds in now.items() if arm in one["seeds"]}
        more = {arm: seeds for arm, seeds in added.items() if seeds}
        if more:
            arm, seeds = next(iter(more.items()))
            before = pluralize(len(one["seeds"][arm]), "seed")
            others = f" (and of {pluralize(len(more) - 1, 'other arm')})" if len(more) > 1 else ""
            return [
                f"{pluralize(len(seeds), 'seed')} of {arm}{others} added since these runs were compared with {before} "
                f"on {one['date'][:10]}: testing again after each added seed gives a false verdict in 12 % (5 to 10 "
                "seeds) to 16 % (5 to 20) of studies where nothing differs; fix the number of seeds before the first "
                "look"
            ]
    return []
