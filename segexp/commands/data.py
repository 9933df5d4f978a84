"""`segexp data check|export`: a data set as a run uses it. `segexp data list|clear`: the images that runs share."""

import csv
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.commands import Parser, add_config_dir, imported
from segexp.errors import DONE, FAILED, REFUSED, UsageError, printable

if TYPE_CHECKING:
    from segexp.config import Config
    from segexp.data.cache import Entry

EPILOG = """\
segexp data check DATASET [KEY=VALUE ...]     what a run would read, split and warn about, with pictures of it
segexp data export DATASET -o FOLDER          write any data set as images/, masks/ and manifest.csv, in a new folder
segexp data list [--json]                     data sets in the cache: size, last use, and what is kept of each
segexp data clear [NAME ...] [--older DAYS]   remove all of them, some, or those not used for DAYS days

Runs read a data set once, check it and keep it in $SEGEXP_CACHE (default: ~/.cache/segexp), as large as
$SEGEXP_CACHE_LIMIT (default: 50GB) allows: the sets used least recently are removed. The cache may be cleared at any
time, also while runs use it: later runs read the files again.

check lists files that cannot be used, files left out, sizes, values of masks, shares of classes, objects that vanish by
resizing, duplicates and near-duplicates. Exit codes: 0 usable, 1 with bad files, 2 a run would be refused.

examples:
  segexp data check folder dataset.root=~/my_images dataset.image_size=256
  segexp data check lesions dataset.number=60 augment=strong -o lesions.png
  segexp data check kvasir_seg dataset.root=~/Kvasir-SEG --json > kvasir.json
"""

SHOWN = 20
"""Bad files and copies that are listed; the others are counted."""


def parser() -> Parser:
    parser = Parser("data", EPILOG)
    add = parser.add_argument
    add("action", choices=tuple(ACTIONS), metavar="ACTION", help=", ".join(ACTIONS))
    add("names", nargs="*", metavar="NAME", complete=_names, help="data sets; check, export: one, and options of a run")
    add("--older", type=float, metavar="DAYS", help="clear: only what was not used for so many days")
    add("--json", action="store_true", help="list, check: everything, as JSON")
    add("-o", "--out", type=Path, metavar="PATH", help="check: the contact sheet (NAME-check.png); export: the folder")
    add_config_dir(parser)
    return parser


def _names() -> list[str]:
    presets: list[str] = imported("segexp.config", "members_of")("dataset")
    return presets + sorted({entry.name for entry in imported("segexp.data.cache", "entries")() if entry.name})


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    return ACTIONS[options.action](options)


def _list(options: Any) -> int:
    from segexp.data.cache import entries, folder, limit
    from segexp.records.formatting import duration, json_table, pluralize, size, text_table

    if options.names or options.older is not None or options.out is not None:
        raise UsageError("`segexp data list` takes no names and no --older: it lists every data set")
    found = entries()
    if options.json:
        print(json_table([{**vars(entry), "path": str(entry.path)} for entry in found]))
        return DONE
    sets: dict[str, list[Entry]] = {}
    for entry in reversed(found):
        sets.setdefault(entry.content, []).append(entry)
    rows = []
    for kept in sets.values():
        shown = [f"images, {entry.geometry}" for entry in kept if entry.kind == "images"]
        rows.append(
            {
                "data set": kept[0].name,
                "images": kept[0].images,
                "kept": sorted(shown) or ["report" if kept[0].kind == "report" else "check"],
                "size": size(sum(entry.bytes for entry in kept)),
                "used": f"{duration(max(0.0, time.time() - kept[0].used))} ago",
                "location": kept[0].location,
            }
        )
    if rows:
        print(text_table(rows))
    total = size(sum(entry.bytes for entry in found))
    print(f"{pluralize(len(rows), 'data set')} in {folder()}: {total} of {size(limit())} (SEGEXP_CACHE_LIMIT)")
    return DONE


def _clear(options: Any) -> int:
    from segexp.data.cache import clear_litter, discard, entries
    from segexp.records.formatting import size
    from segexp.registry import nearest

    if options.json or options.out is not None:
        raise UsageError("`segexp data clear` takes no --json and no --out")
    found = entries()
    known = {label for entry in found for label in (entry.name, entry.location) if label}
    for name in options.names:
        if name not in known:
            raise UsageError(
                f"no data set '{name}' in the cache{nearest(name, known) if known else ''}; see `segexp data list`"
            )
    oldest = time.time() - 86400 * (options.older or 0)
    gone = [entry for entry in found if not options.names or {entry.name, entry.location} & set(options.names)]
    gone = [entry for entry in gone if entry.used <= oldest]
    for entry in gone:
        discard(entry.path)
    clear_litter()
    print(f"removed {len(gone)} of {len(found)} entries, {size(sum(entry.bytes for entry in gone))}")
    return DONE


def _check(options: Any) -> int:
    try:
        return _checked(options)
    except UsageError as error:
        bad = {printable(name): problem for name, problem in getattr(error, "problems", {}).items()}
        if options.json:
            print(json.dumps({"refused": [str(error)], "bad": bad}, indent=1))
        else:
            _print_some(f"{len(bad)} pairs cannot be used:", list(bad.values()))
        raise


def _print_some(title: str, lines: Sequence[str]) -> None:
    """Print the first lines below a title, if there are any."""
    if lines:
        print("\n  ".join([title, *lines[:SHOWN]]))
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more (--json lists all)")


def _checked(options: Any) -> int:
    from segexp.data.description import data_lines
    from segexp.records import run_name

    config = _composed(options)
    from segexp.running.data_check import check_data, contact_sheet

    found = check_data(config)
    if options.json:
        print(json.dumps(found.content(), indent=1))
    else:
        ids = found.image_set.image_ids
        print(f"{config.dataset.name}:")
        like = {True: "is pixel-identical to", False: "looks like a copy of"}
        copied = [
            f"{ids[i]} ({found.part_of[i]}) {like[same]} {ids[j]} ({found.part_of[j]})" for i, j, same in found.copies
        ]
        for line in data_lines(found.data):
            print(f"  {line}")
        unusable = f"{len(found.bad)} of {len(found.bad) + len(ids)} pairs cannot be used:"
        _print_some(unusable, list(found.bad.values()))
        _print_some(f"{len(copied)} copies:", copied)
        for warning in found.warnings:
            print(f"warning: {warning}")
        for reason in found.refused:
            print(f"a run would be refused: {reason}")
    if options.out is not None or not options.json:
        name = run_name([str(config.dataset.name)], "check")
        numbered = (Path(f"{name}{f'-{n}' * (n > 1)}.png") for n in itertools.count(1))
        path = options.out or next(path for path in numbered if not path.exists())
        replaced = " (replaced the file that was there)" * path.exists()
        contact_sheet(found, path)
        print(f"contact sheet: {path}{replaced}", file=sys.stderr if options.json else sys.stdout)
    return REFUSED if found.refused else FAILED if found.bad else DONE


def _composed(options: Any) -> "Config":
    from segexp.config.compose import compose, hydra_session, readable
    from segexp.records.process import set_wait

    if not options.names or "=" in options.names[0] or options.older is not None:
        raise UsageError(f"`segexp data {options.action} DATASET` needs a data set, as in `segexp list datasets`")
    with hydra_session(options.config_dir, options.allow_env) as extra:
        config = compose([f"dataset={options.names[0]}", *readable(options.names[1:])], extra)
    set_wait(config.trainer.wait, config.trainer.threads)  # before torch is loaded
    return config


def _export(options: Any) -> int:
    if options.out is None or options.out.exists() or options.json:
        raise UsageError("`segexp data export DATASET -o FOLDER` needs the name of a new folder, and takes no --json")
    config = _composed(options)
    import numpy as np
    from PIL import Image

    from segexp.data.check import unusable
    from segexp.data.image_set import ImageError
    from segexp.inference.published import placed
    from segexp.losses import IGNORE
    from segexp.running import opened
    from segexp.running.build import units_of

    found, problems = opened(config)[1], dict[str, str]()
    ids, parts, groups = found.image_ids, found.declared_split or {}, found.group_ids
    sizes = [" ".join(map(repr, spacing[-2:])) if spacing else "" for spacing in units_of(config, found).spacings]
    if found.overlapping or len({name.replace("/", "_") for name in ids}) < len(ids):
        raise UsageError(f"{config.dataset.name}: a folder cannot hold overlapping classes, or two images of one name")
    rows = [["id", "image", "mask", *["group"] * any(groups), *["spacing"] * any(sizes), *["split"] * bool(parts)]]
    binary, ignores = found.num_classes == 2, False
    with placed(options.out) as new:
        for folder in ("images", "masks"):
            (new / folder).mkdir(parents=True)
        for n, (name, group) in enumerate(zip(ids, groups, strict=True)):
            try:
                pair = found.read(n)
            except ImageError as error:
                problems[name] = str(error)
                continue
            png = found.channels in (1, 3) and pair.image_HWC.dtype == np.uint8
            stem, image = name.replace("/", "_"), pair.image_HWC[..., 0] if found.channels == 1 else pair.image_HWC
            files = f"images/{stem}.{'png' if png else 'npy'}", f"masks/{stem}.png"
            Image.fromarray(image).save(new / files[0]) if png else np.save(new / files[0], image)
            grey_HW = np.where(pair.mask_HW == IGNORE, 127, 255 * pair.mask_HW) if binary else pair.mask_HW
            ignores |= bool((pair.mask_HW == IGNORE).any())
            Image.fromarray(grey_HW.astype(np.uint8)).save(new / files[1])
            row = [name, *files, *[group or name] * any(groups), *sizes[n : n + 1] * any(sizes)]
            rows.append([*row, *[parts.get(name, "")] * bool(parts)])
        if problems:
            raise unusable(problems, len(ids))
        with (new / "manifest.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows(rows)
    words = ["dataset=manifest", f"dataset.root={options.out}"]
    words += [] if binary else ["dataset.mask_coding=index", f"dataset.num_classes={found.num_classes}"]
    words += [f"dataset.ignore_index={127 if binary else IGNORE}"] * ignores
    print(f"{len(ids)} images and masks of {found.num_classes} classes: {' '.join(words)}")
    return DONE


ACTIONS = {"check": _check, "export": _export, "list": _list, "clear": _clear}
