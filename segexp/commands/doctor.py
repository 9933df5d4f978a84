"""`segexp doctor`: versions, devices and libraries, with a cure for each problem."""

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import segexp
from segexp.commands import Parser
from segexp.errors import DONE, FAILED, first_line


def parser() -> Parser:
    parser = Parser("doctor")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))

    from segexp.records.formatting import json_table, text_table

    rows = [asdict(finding) for finding in findings()]
    print(json_table(rows) if options.json else text_table(rows, width=140))
    return FAILED if any(row["state"] == "bad" for row in rows) else DONE


@dataclass(frozen=True)
class Finding:
    """One line of the report. With state "bad" segexp cannot be used, with "note" it can."""

    what: str
    state: Literal["ok", "note", "bad"]
    detail: str
    cure: str = ""


def findings() -> list[Finding]:
    """All checks. Imports torch."""
    found = [
        Finding("segexp", "ok", f"{segexp.__version__}, Python {platform.python_version()}, {platform.platform()}")
    ]
    # A broken library can raise any exception, which is reported as a finding.
    for check in (_libraries, _torch, _vision, _device, _configs):
        try:
            found += list(check())
        except Exception as error:
            detail = f"{type(error).__name__}: {first_line(error)}"
            cure = "reinstall: pip install --force-reinstall segexp"
            found.append(Finding(check.__name__.strip("_"), "bad", detail, cure))
    return found


def _libraries() -> Iterator[Finding]:
    """What segexp requires, in which versions. Nothing is imported here: some of them take longer than torch."""
    from importlib import metadata

    from packaging.requirements import Requirement

    for requirement in map(Requirement, metadata.requires("segexp") or []):
        name, cure = requirement.name, f"pip install '{requirement}'"
        if "extra ==" in str(requirement.marker) or name in ("torch", "torchvision"):  # they have checks of their own
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "bad", "not installed", cure)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        yield Finding(name, "ok", version) if fits else Finding(name, "bad", f"{version} is another version", cure)


def _torch() -> Iterator[Finding]:
    from segexp.records.process import set_wait, usable_cores

    waiting = set_wait("auto", None)  # before torch is loaded
    import torch

    yield Finding("torch", "ok", torch.__version__)
    load, _, advice = waiting.partition("; others use this machine: ")
    yield Finding("load", "note" if advice else "ok", load, advice)
    yield Finding("threads", "ok", f"{torch.get_num_threads()} for torch, {usable_cores()} cores usable")


def _vision() -> Iterator[Finding]:
    """The operators of a torchvision that was built for another torch cannot be loaded."""
    from importlib import metadata, util

    import torch

    cure = "install both from the same index: pip install --force-reinstall torch torchvision"
    found = util.find_spec("torchvision")  # importing it takes longer than torch
    files = Path(found.origin).parent.glob("_C*") if found and found.origin else ()
    operators = [path for path in files if path.suffix != ".py"]
    try:
        for path in operators:
            torch.ops.load_library(path)
    except OSError as error:
        detail = f"does not match torch {torch.__version__}: {first_line(error)}"
        yield Finding("torchvision", "bad", detail, cure)
    else:
        if operators:
            yield Finding("torchvision", "ok", metadata.version("torchvision"))
        else:
            yield Finding("torchvision", "bad", "not installed, or without its operators", cure)


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name, memory = torch.cuda.get_device_name(index), torch.cuda.get_device_properties(index).total_memory
            yield Finding(f"cuda:{index}", "ok", f"{name}, {memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")
    elif torch.version.cuda is not None and sys.platform == "linux":
        yield Finding("device", "note", "no usable GPU: runs use the CPU", "check nvidia-smi, or continue on the CPU")
    else:
        yield Finding("device", "note", "no GPU: runs use the CPU")


def _configs() -> Iterator[Finding]:
    from segexp.config import configs_dir

    if (configs_dir() / "train.yaml").is_file():
        yield Finding("configs", "ok", str(configs_dir()))
    else:
        yield Finding("configs", "bad", f"{configs_dir()} has no train.yaml", "reinstall segexp")
