"""samples.png: everything that it says lies inside the figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segexp.evaluation import pictures
from segexp.evaluation.pictures import HATCHES, Example, class_look, draw_samples, overlaid, worst_median_best
from segexp.records.formatting import CLASS_COLOURS

BLACK = np.zeros((64, 64, 3), np.uint8)


def test_the_legend_names_the_classes_that_occur_inside_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []

    def image_bytes(figure: Any, kind: str) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(pictures, "image_bytes", image_bytes)
    names = [f"class with quite a long name, number {n}" for n in range(1, 31)]
    truth = np.arange(1, 17, dtype=np.uint8).reshape(4, 4).repeat(4, 0).repeat(4, 1)
    example = Example("worst: Dice 0.1\nname", BLACK[:16, :16], truth, np.zeros_like(truth), np.zeros_like(truth))
    draw_samples(tmp_path / "samples.png", [example], "heading", names)
    (figure,) = figures
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()][:-1] == names[:16]
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
    assert whole.y0 <= box.y0


@pytest.mark.parametrize(("shape", "height"), [((32, 64), 1.4), ((64, 64), 2.6), ((64, 48), 3.4)])
def test_rows_are_as_high_as_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], height: float
) -> None:
    figures: list[Any] = []

    def image_bytes(figure: Any, kind: str) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr(pictures, "image_bytes", image_bytes)
    truth = np.zeros(shape, np.uint8)
    example = Example("worst: Dice 0.1\nname", BLACK[: shape[0], : shape[1]], truth, truth, truth)
    draw_samples(tmp_path / "samples.png", [example] * 3, "heading", ["lesion"])
    assert figures[0].get_figheight() == pytest.approx(3 * height + 0.9, abs=0.1)


def test_an_outer_class_has_its_outline_around_an_inner_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that overlap are drawn by the innermost; the outlines are those of the whole classes."""
    drawn: list[tuple[int, str]] = []
    contour = "matplotlib.axes.Axes.contour"
    monkeypatch.setattr(contour, lambda _, plane, *, colors, **more: drawn.append((int(plane.sum()), colors)))
    sets = np.zeros((20, 20), np.uint8)
    sets[2:18, 2:18] = 1
    sets[5:10, 5:10] = 3
    example = Example("best", BLACK[:20, :20], sets, np.zeros_like(sets), np.zeros_like(sets), True)
    draw_samples(tmp_path / "samples.png", [example], "heading", ["whole", "core"], ("#ff0000", "#00ff00"))
    assert drawn == [(256, "#ff0000"), (25, "#00ff00")] * 2


def test_an_image_is_shown_once() -> None:
    scores = np.array([0.3, np.nan, 0.9])
    assert worst_median_best((5, 6, 7), scores) == [("worst and median", 5, 0.3), ("best", 7, 0.9)]


def test_28_classes_look_different() -> None:
    grey = np.full((48, 48, 3), 0.5)
    looks = {overlaid(grey, np.full((48, 48), c)).tobytes() for c in range(1, len(CLASS_COLOURS) * len(HATCHES) + 1)}
    assert len(looks) == 28


def test_colours_of_the_classes_replace_the_palette() -> None:
    colors = ("#112233", "", "#ffffff")
    assert [class_look(c, colors) for c in range(1, 5)] == [
        ("#112233", ""), (CLASS_COLOURS[1], ""), ("#ffffff", ""), (CLASS_COLOURS[3], ""),
    ]  # fmt: skip
    black = np.zeros((8, 8, 3))
    tinted = overlaid(black, np.full((8, 8), 3), colors)
    assert np.allclose(tinted, 0.55)
    assert np.allclose(overlaid(black, np.full((8, 8), 4), colors), overlaid(black, np.full((8, 8), 4)))
