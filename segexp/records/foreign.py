"""Results of other programs as runs: a table with a row per arm, seed and image, or the summary.json files of nnU-Net.

A run is one arm, data set, fold and seed. Nothing is invented: without a column of seeds an arm is one run, and runs of
equal seeds are pairs only where the user says so. No torch.

summary.json as nnU-Net v2 writes it: https://github.com/MIC-DKFZ/nnUNet, nnunetv2/evaluation/evaluate_predictions.py.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.errors import UsageError
from segexp.records import tables
from segexp.records.files import read_json
from segexp.records.formatting import pluralize
from segexp.records.runs import Run, column_of
from segexp.records.scores import OWN, PER_IMAGE, SCORES, UNKNOWN, Score, facts
from segexp.records.user_tables import PARTS, Table, read_table, some
from segexp.registry import nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PAIRING, STATED, UNPROVEN = "pairing", "stated", "unproven"
"""A column that only runs of other programs have: whether --paired states that runs of equal seeds are pairs."""

_TEXTS = {"seed": "seeds", "image": "images", "class": "classes", "dataset": "data sets", "fold": "folds",
          "group": "groups (patients)", "split": "splits", "n_train": "numbers of training images"}  # fmt: skip
_COUNTS = {"tp": "true positive pixels", "fp": "false positive pixels", "fn": "false negative pixels"}
_SCORES = {"score": "scores, higher is better", "error": "scores, lower is better"}
_SCORES |= {name: SCORES[name].title for name in PER_IMAGE}
ROLES = {"arm": "arms", **_TEXTS, **_COUNTS, **_SCORES}
"""Roles of columns, as --columns names them, and what they hold."""

_OF_COUNTS = ("dice", "iou")  # computed where tp, fp and fn are known, so that empty masks count as in our runs


@dataclass(frozen=True)
class Source:
    """What a path holds. keys: columns of the arm; frame: role or score -> texts, arm -> levels, indexed by place in a
    file; note: how it was read."""

    path: Path
    keys: tuple[str, ...]
    scores: tuple[Score, ...]
    frame: "pd.DataFrame"
    note: str


def load(paths: Sequence[Path], split: str = "test", columns: str | None = None, paired: bool = False) -> tables.Loaded:
    """All runs under ``paths``: our own as `segexp.records.tables.load` reads them, or those of other programs.

    columns: --columns, role=column,role=column; paired: whether runs of equal seeds are pairs, which no table proves.
    Raises UsageError for what cannot be read or contradicts itself, and for both kinds in one call.
    """
    own = [path for path in paths if not (path.is_file() if columns else is_foreign(path))]
    if len(own) == len(paths) and not columns and not paired:
        return tables.load(paths, split)
    if own:
        kind = "table" if columns else "result of another program"
        raise UsageError(f"{own[0]} is no {kind}: compare runs of segexp and nnU-Net apart, without --columns")
    given = columns_in(columns)
    return loaded([_source(path, given, split) for path in paths], paired)


def is_foreign(path: Path) -> bool:
    """Whether a path holds results of another program: summary.json of nnU-Net, or a table without a column run_id."""
    if path.suffix.lower() not in (".csv", ".tsv") or path.name == "runs.csv" or not path.is_file():
        return bool(_summaries(path))
    with path.open("rb") as file:
        return b"run_id" not in file.readline(2**16)


def columns_in(text: str | None) -> dict[str, str]:
    """Role -> column of --columns. Raises UsageError for anything else."""
    chosen: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+=)", text) if text else ():
        role, equals, column = (word.strip() for word in part.partition("="))
        if not (equals and column):
            raise UsageError(f"--columns {text}: '{part}' is not ROLE=COLUMN, for example arm=model,image=case")
        if role not in ROLES or role in chosen:
            wrong = f"unknown role '{role}'{nearest(role, ROLES)}" if role not in ROLES else f"{role} is given twice"
            raise UsageError(f"--columns {text}: {wrong}")
        chosen[role] = column
    return chosen


def _source(path: Path, given: Mapping[str, str], split: str) -> Source:
    if path.is_file() and path.suffix != ".json":
        return of_table(read_table(path, [*given.values()]), given, split)
    return _of_nnunet(path)


def of_table(table: Table, given: Mapping[str, str], split: str = "test") -> Source:
    """The rows of a table; a column that ``given`` does not name is found by the name of its role. Raises UsageError
    for columns that are missing."""
    import pandas as pd

    names, scored = _columns_of(table, given)
    whole = pd.DataFrame([*table.rows], index=[f"{table.path}, line {line}" for line in table.lines])
    parts = whole[names["split"][0]] if "split" in names else ["test"] * len(whole)
    rows = whole[[PARTS.get(part.casefold(), part) == split for part in parts]]
    if not len(rows):
        raise UsageError(
            f"{table.path} has no rows of split {split}; --columns split=COLUMN names the column of splits"
        )
    texts = {role: rows[of[0]] for role, of in names.items() if role in (*_TEXTS, *_COUNTS)}
    arms = [*zip(*(rows[name] for name in names["arm"]), strict=True)]
    frame = pd.DataFrame({**texts, "arm": arms, **{s.name: rows[name] for s, name in scored.items()}}, rows.index)
    left, used = len(whole) - len(rows), {name for of in names.values() for name in of}
    unused, own = [name for name in table.columns if name not in used], [s for s in scored if s.name.startswith(OWN)]
    note = f"{table.path} read with " + ", ".join(f"{role}={'+'.join(of)}" for role, of in names.items())
    note += f"; {pluralize(left, 'row')} of other splits left out" if left else ""
    note += f"; not used: {some(unused)}" if unused else ""
    note += "".join(f"; {s.title}: {'higher' if s.higher_is_better else 'lower'} is better, as given" for s in own)
    note += "" if "seed" in names else "; no seeds, so each arm is one run"
    return Source(table.path, tuple(names["arm"]), tuple(scored), frame, note)


def _columns_of(table: Table, given: Mapping[str, str]) -> tuple[dict[str, list[str]], dict[Score, str]]:
    """Role -> its columns, and score -> its column. Raises UsageError for what is missing or contradicts a score."""
    chosen = dict(given)
    for name in [name for name in table.columns if name.removesuffix("_id") in ROLES]:
        role = name.removesuffix("_id")
        if role != "error" and not (role in _SCORES and given.keys() & _SCORES.keys()):
            chosen.setdefault(role, name)
    names = {role: [c] if c in table.columns else [n.strip() for n in c.split("+")] for role, c in chosen.items()}
    counted = names.keys() >= _COUNTS.keys()
    if not counted and not names.keys() & _SCORES.keys():
        names["score"] = ["score"]
    for role, of_role in ({"arm": ["arm"], "image": ["image"]} | names).items():
        for name in of_role:
            table.check_column(name, f"--columns {role}", ROLES[role])
    scored: dict[Score, str] = {}
    for role, name in [(role, name) for role, of_role in names.items() if role in _SCORES for name in of_role]:
        known = SCORES.get(role if role in PER_IMAGE else name.lower())
        if known is None or not known.per_image:
            own = OWN + re.sub(r"\W|^(?=\d)", "_", name)
            known = Score(own, name, highest=math.inf, higher_is_better=role == "score", per_image=True)
        elif role in ("score", "error") and known.higher_is_better != (role == "score"):
            better = "higher" if known.higher_is_better else "lower"
            raise UsageError(f"--columns {role}={name}: {better} is better in {name}; write {known.name}={name}")
        if not (counted and known.name in _OF_COUNTS):
            scored[known] = name
    return names, scored


def _summaries(path: Path) -> list[Path]:
    """The summary.json files of a folder: of its folds, else its own, else one in each of its folders."""
    if not path.is_dir():
        return [path] if path.is_file() and path.suffix == ".json" else []
    fold = "fold_*/validation/summary.json"
    of_folds = ("validation/summary.json", fold, f"*__*__*/{fold}", f"Dataset*/*__*__*/{fold}")
    found = (sorted(path.glob(pattern)) for pattern in (*of_folds, "summary.json", "*/summary.json"))
    return next(filter(None, found), [])


def _of_nnunet(path: Path) -> Source:
    """Every case of the summaries of a folder; an arm is a folder TRAINER__PLANS__CONFIGURATION. Raises UsageError."""
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {}
    for file in map(Path, map(os.path.abspath, _summaries(path))):
        about: dict[str, Any] = {"arm": (file.parent.name,)}
        if file.parent.name == "validation" and file.parts[-3].startswith("fold_"):
            about = {"arm": (file.parts[-4],), "fold": file.parts[-3].removeprefix("fold_"), "dataset": file.parts[-5]}
        if about.get("fold") != "all":  # scored on its own training images
            rows |= _cases(file, about)
    if not rows:
        raise UsageError(f"{path} holds no case of a fold or test set (fold_all is scored on its training images)")
    frame, note = pd.DataFrame.from_dict(rows, orient="index"), "read as results of nnU-Net, scores from TP, FP and FN"
    return Source(path, ("arm",), (), frame, f"{path} {note}")


def _cases(file: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Place in the file -> case, class and their counts as texts."""
    content, rows = read_json(file), {}
    cases = content.get("metric_per_case") if isinstance(content, dict) else None
    if not isinstance(cases, list):
        raise UsageError(f"{file} is no summary.json of nnU-Net v2, as it has no metric_per_case: evaluate with v2")
    for n, case in enumerate(cases, start=1):
        try:
            name = re.split(r"[\\/]", case.get("reference_file") or case["prediction_file"])[-1]
            image = re.sub(r"(\.nii\.gz|\.[^.]+)$", "", name)
            for label, found in case["metrics"].items():
                counts = {role: str(found[role.upper()]) for role in _COUNTS}
                rows[f"{file}, case {n}, class {label}"] = {**about, "image": image, "class": label, **counts}
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{file}, case {n} lacks what nnU-Net v2 writes ({error!r}): evaluate again") from None
    return rows


def loaded(sources: Sequence[Source], paired: bool = False) -> tables.Loaded:
    """The runs of the sources, which name the same columns. Raises UsageError where rows cannot be true together."""
    import pandas as pd

    first = sources[0]
    for other in sources:
        if (other.keys, {*other.frame}) != (first.keys, {*first.frame}):
            raise UsageError(f"{first.path} and {other.path} have other columns of arms or scores: compare them apart")
    texts = pd.concat([source.frame for source in sources])
    if paired and "seed" not in texts:
        raise UsageError("--paired: there is no column of seeds to pair; name it with --columns seed=COLUMN")
    counted = {*_COUNTS} <= {*texts}
    scores = (*(SCORES[name] for name in _OF_COUNTS if counted), *first.scores)
    frame = _with_numbers(texts, scores, counted)
    place = ["dataset", "image", "class"]
    _refuse_two(frame, ["fold", "arm", "seed", *place], "", "remove one, or name the column that tells them apart")
    _refuse_two(frame, place[:2], "group", "give the image one group")
    _refuse_two(frame, place, "n_gt", "score all arms on the same references (tp + fn)")
    id_of, notes = _numbered("classes", frame["class"], 1)
    seed_of, of_seeds = _numbered("seeds", frame["seed"], 0)
    shared = {"status": "done", "empty_policy": "reference", PAIRING: STATED if paired else UNPROVEN}
    shared |= {"distance_unit": UNKNOWN}
    if any(label not in ("", str(n)) for label, n in id_of.items()):
        label_of = {n: label for label, n in id_of.items()}
        shared["config_dataset_class_names"] = json.dumps([label_of.get(n, "") for n in range(max(label_of) + 1)])
    if own := {s.name.removeprefix(OWN): facts(s) for s in first.scores if s.name.startswith(OWN)}:
        shared["scores"] = json.dumps(own)
    frame["class_id"], frame["seed"] = frame["class"].map(id_of), frame["seed"].map(seed_of).astype(str)
    runs = _runs(frame.sort_values(["image", "class_id"], kind="stable"), first, [s.name for s in scores], shared)
    problems = [*(source.note for source in sources), *of_seeds, *notes, *_lacking(frame)]
    return tables.Loaded(tuple(runs), tuple(problems), first.keys, tuple(score.name for score in scores))


def _runs(frame: "pd.DataFrame", source: Source, scores: Sequence[str], shared: Mapping[str, str]) -> Iterable[Run]:
    """The runs of rows in order of images and classes. shared: cells of runs.csv that all of them have."""
    layouts: dict[Any, tables.Layout] = {}
    n_train = _train_sizes(frame)
    key: Any
    for n, (key, rows) in enumerate(frame.groupby(["dataset", "fold", "arm", "seed"])):
        dataset, fold, arm, seed = key
        numbers = {name: rows[name].to_numpy() for name in ("class_id", "n_gt", *_COUNTS, *scores)}
        try:
            images = tables.images_of(tuple(rows["image"]), tuple(rows["group"]), numbers, layouts, 0)
        except ValueError as error:
            cure = "add the missing rows, with an empty score where an image does not hold a class"
            raise UsageError(f"{rows.index[0]}: {', '.join(arm)}: {error}; {cure}") from None
        name, names = dataset or Path(os.path.abspath(source.path)).stem, images.layout.image_ids
        row = {"run_id": "-".join([str(n), *arm, seed]), **shared, "dataset": name, "config_dataset_name": name}
        row |= {"seed": seed, "config_seed": seed, "fold": fold, "n_test": str(len(names))}
        row |= {"n_train": str(rows["n_train"].iloc[0] or n_train.get((dataset, fold), ""))}
        if any(images.layout.groups):
            row |= {"n_test_groups": str(rows["unit"].nunique()), "n_train_groups": row["n_train"]}
        if fold:  # folds with the same images are parts of one split
            row["split_sha"] = hashlib.sha256("\n".join(names).encode()).hexdigest()
        row |= {column_of(of): level for of, level in zip(source.keys, arm, strict=True)}
        yield Run(row["run_id"], "done", source.path, cells=row, images=images, collected=True)


def _with_numbers(texts: "pd.DataFrame", scores: Sequence[Score], counted: bool) -> "pd.DataFrame":
    """The rows with all roles, scores and counts as numbers, n_gt (above 0 where the reference holds the class), and
    unit: the group, else the image."""
    import numpy as np

    for role in [role for role in texts if role in ("arm", *_TEXTS) and role != "group"]:
        empty = [not all(cell) if role == "arm" else not cell for cell in texts[role]]
        _refuse(texts.index, empty, f"the {role} is empty; fill it in, or leave the row out")
    numbers = {s.name: _numbers(texts[s.name]) for s in scores if s.name in texts}
    for score in (score for score in scores if score.name in numbers and not score.name.startswith(OWN)):
        wrong = (numbers[score.name] < -tables.ROUNDING) | (numbers[score.name] > score.highest + tables.ROUNDING)
        share = "; write shares, not percent" if score.highest == 1 else ""
        _refuse(texts.index, wrong, f"{score.name} is not between 0 and {score.highest:g}{share}")
    if counted:
        tp, fp, fn = (_numbers(texts[role]) for role in _COUNTS)
        for role, count in zip(_COUNTS, (tp, fp, fn), strict=True):
            _refuse(texts.index, ~(count >= 0) | (count % 1 != 0), f"{role} is not a whole number of pixels")
        with np.errstate(invalid="ignore"):
            numbers |= {"dice": 2 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn)}
        numbers |= {"tp": tp, "fp": fp, "fn": fn, "n_gt": tp + fn}
    else:
        held = ~np.isnan(np.stack([*numbers.values()])).all(axis=0)
        numbers |= dict.fromkeys(_COUNTS, 0.0 * held) | {"n_gt": 1.0 * held}
    frame = texts.assign(**({role: "" for role in _TEXTS if role not in texts} | numbers))
    return frame.assign(unit=frame["group"].where(frame["group"] != "", frame["image"]))


def _numbers(texts: "pd.Series[str]") -> "np.ndarray":
    """The column as float64, NaN for undefined scores."""
    import numpy as np

    def number(text: str) -> float:
        try:
            return math.nan if text.casefold() in ("", "na", "none") else float(text)
        except ValueError:
            return math.inf

    found = np.array([number(text) for text in texts])
    _refuse(texts.index, np.isinf(found), f"{texts.name} is not a finite number; write decimals with a point")
    return found


def _refuse(places: Iterable[Any], wrong: Iterable[Any], why: str) -> None:
    """Raise UsageError with the first place where ``wrong`` is true."""
    if place := next((place for place, bad in zip(places, wrong, strict=True) if bad), ""):
        raise UsageError(f"{place}: {why}")


def _refuse_two(frame: "pd.DataFrame", by: list[str], fact: str, cure: str) -> None:
    """Raise UsageError where rows that agree in ``by`` have two values of a fact, or of "" are two."""
    rows = frame.drop_duplicates([*by, fact]) if fact else frame
    twice = rows[rows.duplicated(by, keep=False)]
    if len(twice):
        a = twice.iloc[0]
        b = twice[(twice[by] == a[by]).all(axis=1)].iloc[1]
        what = f"have the {fact} {a[fact]} and {b[fact]}" if fact else "are both"
        raise UsageError(f"{a.name} and {b.name} {what} ({', '.join(str(a[name]) for name in by)}); {cure}")


def _numbered(what: str, texts: Collection[str], start: int) -> tuple[dict[str, int], list[str]]:
    """Text -> whole number; names are numbered in their order, which the note says."""
    names = sorted(set(texts))
    if all(re.fullmatch(r"\d{1,9}", name) for name in names):
        return {name: int(name) for name in names}, []
    numbers = {name: n for n, name in enumerate(names, start=start)}
    shown = some([f"{n} is {name}" for name, n in numbers.items()])
    return numbers, [f"{what} are names, numbered in their order: {shown}"] if names != [""] else []


def _train_sizes(frame: "pd.DataFrame") -> dict[tuple[str, str], int]:
    """(data set, fold) -> images (groups) of the other folds, on which runs of a cross-validation are trained; none for
    folds that share some."""
    sizes: dict[tuple[str, str], int] = {}
    for dataset, here in frame.groupby("dataset"):
        of_fold, n = here.groupby("fold")["unit"].nunique(), here["unit"].nunique()
        if len(of_fold) > 1 and of_fold.sum() == n:
            sizes |= {(str(dataset), str(fold)): n - tested for fold, tested in of_fold.items()}
    return sizes


def _lacking(frame: "pd.DataFrame") -> list[str]:
    """A line for each arm with fewer images than others have of the data set and fold."""
    lines = []
    for (dataset, fold), here in frame.groupby(["dataset", "fold"]):
        every = set(here["image"])
        where = f" of {dataset}" * bool(dataset) + f" in fold {fold}" * bool(fold)
        for arm in dict.fromkeys(here["arm"]):
            of_arm = here[[one == arm for one in here["arm"]]]
            if absent := sorted(every - set.intersection(*(set(seed) for _, seed in of_arm.groupby("seed")["image"]))):
                lacks = f"{', '.join(arm)} lacks {len(absent)} of {pluralize(len(every), 'image')}{where}"
                lines.append(f"{lacks} ({some(absent)}): comparisons use the images that both arms have")
    return lines
