"""`segexp curves`: figures of activation functions, output ones or hidden ones."""

from collections.abc import Sequence
from pathlib import Path

from segexp.curves.hidden import hidden_figure
from segexp.curves.output import DEFAULT, output_figure
from segexp.drawing import METADATA, image_bytes
from segexp.errors import UsageError
from segexp.records import write_atomic

FORMATS = tuple(f".{kind}" for kind in METADATA)


def draw_curves(path: Path, output: Sequence[str] | None, hidden: Sequence[str] | None) -> None:
    """Draw the named activations into ``path``. Raises UsageError for unknown names and formats.

    output: output activations; those of the paper where neither is given. hidden: hidden ones, "all" for every one.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UsageError(f"{path}: cannot draw '{path.suffix}' files; use {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the folder {path.absolute().parent} does not exist")
    if output is not None and hidden is not None:
        raise UsageError(
            "--output and --hidden make different figures: give one of them, and the other to another file"
        )
    figure = output_figure(output or DEFAULT) if hidden is None else hidden_figure(hidden)
    write_atomic(path, image_bytes(figure, kind.removeprefix(".")))
