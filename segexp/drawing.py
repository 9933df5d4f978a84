"""What all figures share: colours and line styles, the canvas, the grid, and how a figure becomes a file."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK, GREY = "#E69F00", "#56B4E9", "#F0E442", "#000000", "#999999"
"""Okabe and Ito's palette, told apart with any colour vision."""

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Of lines in their order: yellow is hard to see on white. Line styles tell further ones apart."""

STYLES = ("-", "--", ":")

METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
"""Formats of a figure, and what they would say of themselves: without versions and dates the same figure is the same
file."""


def look(n: int) -> tuple[str, str]:
    """Colour and style of the nth line."""
    return COLOURS[n % len(COLOURS)], STYLES[n // len(COLOURS) % len(STYLES)]


def new_figure(
    width: float, height: float, dpi: int = 130, layout: Literal["constrained"] | None = "constrained"
) -> Any:
    """A figure of so many inches that no window knows of. layout: None where places are given by hand."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def image_bytes(figure: "Figure", kind: str, dpi: float | None = None, transparent: bool = False) -> bytes:
    """The figure as a file of a kind of `METADATA`. dpi: that of the figure where it is None."""
    import io

    buffer = io.BytesIO()
    resolution = figure.dpi if dpi is None else dpi
    figure.savefig(buffer, format=kind, dpi=resolution, transparent=transparent, metadata=METADATA[kind])
    return buffer.getvalue()


def tidy(axis: "Axes") -> None:
    """A light grid, and no frame above and to the right."""
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
