"""samples.png: everything that it says lies inside the figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segexp.evaluation import pictures
from segexp.evaluation.pictures import CLASS_COLOURS, HATCHES, Example, class_look, draw_samples, overlaid


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
    example = Example(
        "worst: Dice 0.1\nname", np.zeros((16, 16, 1)), truth, np.zeros_like(truth), np.zeros((30, 16, 16))
    )
    draw_samples(tmp_path / "samples.png", [example], "heading", names)
    (figure,) = figures
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()][:-1] == names[:16]
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
    assert whole.y0 <= box.y0


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
