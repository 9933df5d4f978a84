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
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from segexp.errors import UsageError
from segexp.records import tables
from segexp.records.files import read_json
from segexp.records.formatting import pluralize
from segexp.records.runs import Run, column_of, studies_in
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
_RUN, _IMAGE = ["dataset", "fold", "arm", "seed"], ["dataset", "image"]


class Source(NamedTuple):
    """A table. keys: columns of the arm; frame: role or score -> texts, arm -> levels, by place; note: how read."""

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
    if len(own) == len(paths) and not (columns or paired):
        return tables.load(paths, split)
    if own:
        wrong = "is no table of another program: compare it separately, without --columns and --paired"
        raise UsageError(f"{own[0]} {wrong if own[0].exists() else 'does not exist; check the path'}")
    given = columns_in(columns)
    read = [_nnunet(path) if _summaries(path) else read_table(path, [*given.values()]) for path in paths]
    return loaded([of_table(table, given, split) for table in read], paired)


def is_foreign(path: Path) -> bool:
    """Whether a path holds results of another program: summary.json of nnU-Net, or a table without a column run_id."""
    if path.is_dir():
        with suppress(UsageError):
            return bool(_summaries(path)) and not studies_in(path)  # our own runs come first
        return True
    if path.suffix.lower() not in (".csv", ".tsv") or path.name == "runs.csv" or not path.is_file():
        return bool(_summaries(path))
    with path.open("rb") as file:
        return b"run_id" not in file.readline(2**16)


def columns_in(text: str | None) -> dict[str, str]:
    """Role -> column of --columns. Raises UsageError for anything else."""
    chosen: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", text) if text else ():
        role, _, column = (word.strip() for word in part.partition("="))
        if not column or role not in ROLES or role in chosen:
            wrong = "given twice" if role in chosen else f"an unknown role{nearest(role, ROLES)}"
            wrong = f"{role} is {wrong}" if column else f"'{part}' is not ROLE=COLUMN, for example arm=model,image=case"
            raise UsageError(f"--columns {text}: {wrong}")
        chosen[role] = column
    return chosen


def of_table(table: Table, given: Mapping[str, str], split: str = "test") -> Source:
    """The rows of a table; a column that ``given`` does not name is found by the name of its role. Raises UsageError
    for columns that are missing."""
    import pandas as pd

    if not table.rows:
        raise UsageError(f"{table.path} has no rows below its header; export the scores again")
    names, scored = _columns_of(table, given)
    unit = "line" if table.path.is_file() and table.path.suffix != ".json" else "row"
    whole = pd.DataFrame([*table.rows], index=[f"{table.path}, {unit} {number}" for number in table.lines])
    parts = whole[names["split"][0]] if "split" in names else ["test"] * len(whole)
    rows = whole[[PARTS.get(part.casefold(), part) == split for part in parts]]
    if not len(rows):
        raise UsageError(f"{table.path} has no rows of split {split}; name the column: --columns split=COLUMN")
    texts = {role: rows[of[0]] for role, of in names.items() if role in (*_TEXTS, *_COUNTS)}
    arms = [*zip(*(rows[name] for name in names["arm"]), strict=True)]
    frame = pd.DataFrame({**texts, "arm": arms, **{s.name: rows[name] for s, name in scored.items()}}, rows.index)
    unused = [name for name in table.columns if name not in {name for of in names.values() for name in of}]
    read = ", ".join(role if of == [role] else f"{role}={'+'.join(of)}" for role, of in names.items())
    notes = [f"{table.path} read with {read}"]
    notes += [f"{pluralize(len(whole) - len(rows), 'row')} of other splits left out"] if len(rows) < len(whole) else []
    notes += [f"not used: {some(unused)}"] if unused else []
    own = [score for score in scored if score.name.startswith(OWN)]
    notes += [f"{s.title}: {'higher' if s.higher_is_better else 'lower'} is better, as given" for s in own]
    notes += [] if "seed" in names else ["no seeds, so each arm is one run"]
    return Source(table.path, tuple(names["arm"]), tuple(scored), frame, "; ".join(notes))


def _columns_of(table: Table, given: Mapping[str, str]) -> tuple[dict[str, list[str]], dict[Score, str]]:
    """Role -> its columns, and score -> its column. Raises UsageError for what is missing or contradicts a score."""
    chosen, scores_given = dict(given), not given.keys().isdisjoint(_SCORES)
    filled = {name for row in table.rows for name, cell in row.items() if cell}
    for name in [name for name in table.columns if name not in given.values()]:
        role = name.removesuffix("_id")
        if role in ROLES and role != "error" and not (scores_given if role in _SCORES else name not in filled):
            chosen.setdefault(role, name)
    counted = chosen.keys() >= _COUNTS.keys()
    needed = ["arm", "image", *(["score"] if not counted and chosen.keys().isdisjoint(_SCORES) else [])]
    chosen = dict(zip(needed, needed, strict=True)) | chosen
    names = {role: [c] if c in table.columns else [n.strip() for n in c.split("+")] for role, c in chosen.items()}
    if len({column_of(name) for name in names["arm"]}) < len(names["arm"]):
        raise UsageError(f"{table.path}: the columns {', '.join(names['arm'])} differ too little; rename one of them")
    scored: dict[Score, str] = {}
    for role, name in [(role, name) for role, of_role in names.items() for name in of_role]:
        table.check_column(name, f"--columns {role}", ROLES[role])
        known = SCORES.get(role if role in PER_IMAGE else name.lower())
        if known is None or not known.per_image:
            own = OWN + re.sub(r"\W|^(?=\d)", "_", name)
            known = Score(own, name, highest=math.inf, higher_is_better=role == "score", per_image=True)
        elif role in ("score", "error") and known.higher_is_better != (role == "score"):
            better = "higher" if known.higher_is_better else "lower"
            raise UsageError(f"--columns {role}={name}: {better} is better in {name}; write {known.name}={name}")
        if role in _SCORES and not (counted and known.name in _OF_COUNTS):
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


def _nnunet(path: Path) -> Table:
    """Every case and class of the summaries of a folder; an arm is a folder TRAINER__PLANS__CONFIGURATION."""
    rows: list[dict[str, str]] = []
    for file in map(Path, map(os.path.abspath, _summaries(path))):
        about = {"arm": file.parent.name}
        if file.parent.name == "validation" and file.parts[-3].startswith("fold_"):
            about = {"arm": file.parts[-4], "fold": file.parts[-3].removeprefix("fold_"), "dataset": file.parts[-5]}
        if about.get("fold") != "all":  # scored on its own training images
            rows += _cases(file, about)
    if not rows:
        raise UsageError(f"{path} holds no case of a fold or test set (fold_all is scored on its training images)")
    return Table(path, ",", tuple(rows[0]), tuple(rows), tuple(range(1, len(rows) + 1)))


def _cases(file: Path, about: Mapping[str, str]) -> Iterator[dict[str, str]]:
    content = read_json(file)
    cases = content.get("metric_per_case") if isinstance(content, dict) else None
    if not isinstance(cases, list):
        raise UsageError(f"{file} is no summary.json of nnU-Net v2, as it has no metric_per_case: evaluate with v2")
    for n, case in enumerate(cases, start=1):
        try:
            name = re.split(r"[\\/]", case.get("reference_file") or case["prediction_file"])[-1]
            image = re.sub(r"(\.nii\.gz|\.[^.]+)$", "", name)
            for label, found in case["metrics"].items():
                yield {**about, "image": image, "class": label, **{role: str(found[role.upper()]) for role in _COUNTS}}
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{file}, case {n} lacks what nnU-Net v2 writes ({error!r}): evaluate again") from None


def loaded(sources: Sequence[Source], paired: bool = False) -> tables.Loaded:
    """The runs of the sources, which name the same columns. Raises UsageError where rows cannot be true together."""
    import pandas as pd

    first = sources[0]
    for other in sources:
        if (other.keys, {*other.frame}) != (first.keys, {*first.frame}):
            raise UsageError(
                f"{first.path} and {other.path} differ in columns of arms or scores: compare them separately"
            )
    texts = pd.concat([source.frame for source in sources])
    if paired and "seed" not in texts:
        raise UsageError("--paired: there is no column of seeds to pair; name it with --columns seed=COLUMN")
    counted = {*_COUNTS} <= {*texts}
    scores = {score.name: score for score in (*(SCORES[name] for name in _OF_COUNTS if counted), *first.scores)}
    frame = _with_numbers(texts, scores, counted)
    _refuse_two(frame, [*_RUN, "image", "class"], "", "remove one, or name the column in which they differ")
    _refuse_two(frame, _IMAGE, "group", "give the image one group")
    if counted:
        _refuse_two(frame, [*_IMAGE, "class"], "n_gt", "score all arms on the same references (n_gt = tp + fn)")
    else:
        cure = "give all runs a score of this image, or leave the image out of all"
        known = frame["n_gt"].map({1: "known", 0: "undefined"})
        _refuse_two(frame.assign(score=known), [*_IMAGE, "class"], "score", cure)
    id_of, of_classes = _numbered("classes", frame["class"], 1)
    seed_of, of_seeds = _numbered("seeds", frame["seed"], 0)
    frame["class_id"], frame["seed"] = frame["class"].map(id_of), frame["seed"].map(seed_of).astype(str)
    shared = {PAIRING: STATED if paired else UNPROVEN, "empty_policy": "reference", "distance_unit": UNKNOWN}
    if of_classes:
        name_of = {number: name for name, number in id_of.items()}
        shared["config_dataset_class_names"] = json.dumps([name_of.get(n, "") for n in range(max(name_of) + 1)])
    shared["scores"] = json.dumps({n.removeprefix(OWN): facts(s) for n, s in scores.items() if n.startswith(OWN)})
    runs = _runs(frame.sort_values(["image", "class_id"], kind="stable"), first, [*scores], shared)
    problems = [*(source.note for source in sources), *of_seeds, *of_classes, *_lacking(frame)]
    return tables.Loaded(tuple(runs), tuple(problems), first.keys, tuple(scores))


def _runs(frame: "pd.DataFrame", source: Source, scores: Sequence[str], shared: Mapping[str, str]) -> Iterator[Run]:
    """The runs of rows in order of images and classes. shared: cells of runs.csv that all of them have."""
    layouts: dict[Any, tables.Layout] = {}
    tested, every = frame.groupby(["dataset", "fold"])["unit"].nunique(), frame.groupby("dataset")["unit"].nunique()
    disjoint = tested.groupby("dataset").sum() == every
    key: Any
    for n, (key, rows) in enumerate(frame.groupby(_RUN)):
        dataset, fold, arm, seed = key
        numbers = {name: rows[name].to_numpy() for name in ("class_id", "n_gt", *_COUNTS, *scores)}
        try:
            images = tables.images_of(tuple(rows["image"]), tuple(rows["group"]), numbers, layouts, 0)
        except ValueError as error:
            cure = "add the missing rows, with an empty score where an image does not hold a class"
            raise UsageError(f"{rows.index[0]}: {', '.join(arm)}: {error}; {cure}") from None
        name, names = dataset or Path(os.path.abspath(source.path)).stem, images.layout.image_ids
        row = {"run_id": "-".join([str(n), *arm, seed]), "status": "done", "dataset": name, "config_dataset_name": name}
        row |= {"seed": seed, "config_seed": seed, "fold": fold, "n_test": str(len(names)), **shared}
        # A fold is trained on the others, and folds with the same images are parts of one split.
        others = str(every[dataset] - tested[dataset, fold]) if disjoint[dataset] else ""
        row |= {"n_train": rows["n_train"].iloc[0] or others} if fold else {}
        row |= {"split_sha": hashlib.sha256("\n".join(names).encode()).hexdigest()} if fold else {}
        if fold and any(images.layout.groups):
            row |= {"n_test_groups": str(rows["unit"].nunique()), "n_train_groups": row["n_train"]}
        row |= {column_of(of): level for of, level in zip(source.keys, arm, strict=True)}
        yield Run(row["run_id"], "done", source.path, cells=row, images=images, collected=True)


def _with_numbers(texts: "pd.DataFrame", scores: Mapping[str, Score], counted: bool) -> "pd.DataFrame":
    """The rows with all roles; scores and counts as numbers; n_gt, above 0 where the reference holds the class; unit,
    the group or else the image."""
    import numpy as np

    for role in [role for role in texts if role in ("arm", *_TEXTS) and role != "group"]:
        empty = [not all(cell) if role == "arm" else not cell for cell in texts[role]]
        _refuse(texts.index, empty, f"the {role} is empty; fill it in, or leave the row out")
    numbers = {name: _numbers(texts[name]) for name in (*scores, *_COUNTS) if name in texts}
    for name, found in numbers.items():
        if name in _COUNTS:
            _refuse(texts.index, ~((found >= 0) & (found % 1 == 0)), f"{name} is not a whole number of pixels")
        elif (score := scores[name]).name in SCORES:
            limits = f"0 and {score.highest:g}{' (shares, not percent)' * (score.highest == 1)}"
            wrong = (found < -tables.ROUNDING) | (found > score.highest + tables.ROUNDING)
            _refuse(texts.index, wrong, f"{name} is not between {limits}")
    if counted:
        tp, fp, fn = (numbers[role] for role in _COUNTS)
        with np.errstate(invalid="ignore"):
            numbers |= {"dice": 2 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn), "n_gt": tp + fn}
    else:
        held = ~np.isnan(np.stack([*numbers.values()])).all(axis=0)
        numbers |= dict.fromkeys(_COUNTS, 0.0 * held) | {"n_gt": 1.0 * held}
    frame = texts.assign(**({role: "" for role in _TEXTS if role not in texts} | numbers))
    # An image without group may have the name of a group.
    return frame.assign(unit=frame["group"].where(frame["group"] != "", "\0" + frame["image"]))


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


def _refuse(places: "pd.Index[str]", wrong: Collection[bool], why: str) -> None:
    """Raise UsageError with the first place where ``wrong`` is true."""
    if place := next((place for place, bad in zip(places, wrong, strict=True) if bad), ""):
        raise UsageError(f"{place}: {why}")


def _refuse_two(frame: "pd.DataFrame", by: list[str], fact: str, cure: str) -> None:
    """Raise UsageError where rows that agree in ``by`` have two values of a fact, or of "" are two."""
    rows = frame.drop_duplicates([*by, fact]) if fact else frame
    if len(twice := rows[rows.duplicated(by, keep=False)]):
        a = twice.iloc[0]
        b = twice[(twice[by] == a[by]).all(axis=1)].iloc[1]
        what = f"have the {fact} {a[fact]} and {b[fact]}" if fact else "are both"
        shown = ", ".join(", ".join(a[name]) if name == "arm" else a[name] for name in by if a[name])
        raise UsageError(f"{a.name} and {b.name} {what} ({shown}); {cure}")


def _numbered(what: str, texts: Collection[str], start: int) -> tuple[dict[str, int], list[str]]:
    """Text -> whole number; names are numbered in their order, after the numbers beside them, which the note says."""
    numbers = {text: int(text) for text in sorted(set(texts)) if re.fullmatch(r"\d{1,9}", text)}
    names = sorted({*texts} - {*numbers})
    if len({*numbers.values()}) < len(numbers) or (names and max(numbers.values(), default=0) > 255):
        numbers, names = {}, sorted({*texts})
    numbers |= {name: n for n, name in enumerate(names, start=max(numbers.values(), default=start - 1) + 1)}
    if not names:
        return numbers, []
    shown = some([f"{numbers[name]} is {name}" for name in names])
    return numbers, [f"{what} are names, numbered in their order: {shown}"] if names != [""] else []


def _lacking(frame: "pd.DataFrame") -> Iterator[str]:
    """A line for each arm with fewer images than others have of the data set and fold."""
    of_run = frame.groupby(_RUN)["image"].agg(set)
    arm: Any
    for (dataset, fold), of_part in of_run.groupby(["dataset", "fold"]):
        every = set().union(*of_part)
        for arm, of_arm in of_part.groupby("arm"):
            if absent := sorted(every - set.intersection(*of_arm)):
                where = f" of {dataset}" * bool(dataset) + f" in fold {fold}" * bool(fold)
                lacks = f"{', '.join(arm)} lacks {len(absent)} of {pluralize(len(every), 'image')}{where}"
                yield f"{lacks} ({some(absent)}): comparisons use the images that both arms have"
