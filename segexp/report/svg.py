"""A figure as an <svg> element of the page: in the colours and the font of the page, without what no screen shows."""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from segexp.records.formatting import BLACK, BLUE, METADATA
from segexp.report.drawing import GRID, MUTED, TEXT, styled
from segexp.report.figures import Drawing
from segexp.report.tables import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = {
    TEXT: "currentColor",
    BLACK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    BLUE.lower(): "var(--blue)",
}
"""Colours of figures that follow the light or dark page."""

NEAR = 5
"""Points around a place that belong to it."""

_LONG_NUMBER = re.compile(r"(\.\d)\d+")


def inline_svg(drawing: Drawing, samples: Mapping[str, str]) -> str:
    """A figure as an <svg> element for HTML. Its name is unique on the page, for its ids (clips, markers).

    samples: image -> id of its sample prediction on the page.
    """
    from matplotlib import rc_context

    with styled(), rc_context({"svg.hashsalt": drawing.name}):
        root = ET.fromstring(_drawn_once(drawing.figure))
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        _adapt(element)
    for group in root.iter("g"):
        _share_style(group)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.attrib.pop("version", None)
    label, style = clean(drawing.alt), f"max-width:{1.45 * width:.0f}px"
    root.attrib |= {"role": "img", "aria-label": label, "style": style}
    root.append(_tips(drawing, samples))
    return ET.tostring(root, encoding="unicode")


def _drawn_once(figure: "Figure") -> bytes:
    """The figure as SVG without backgrounds. `Figure.savefig` gives the same, and draws twice to lay it out."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    patches, dpi, buffer = [figure.patch, *(axis.patch for axis in figure.axes)], figure.dpi, io.BytesIO()
    before = [(patch.get_facecolor(), patch.get_edgecolor()) for patch in patches]
    for patch in patches:
        patch.set(facecolor="none", edgecolor="none")
    FigureCanvasSVG(figure).print_svg(buffer, metadata=METADATA["svg"])
    for patch, (face, edge) in zip(patches, before, strict=True):
        patch.set(facecolor=face, edgecolor=edge)
    figure.set_dpi(dpi)
    return buffer.getvalue()


def _tips(drawing: Drawing, samples: Mapping[str, str]) -> ET.Element:
    """The places of a figure with their numbers as titles, transparent above the drawing, without those outside its
    axis; above the others those that lead to a sample."""
    group, axis = ET.Element("g", {"class": "tips"}), drawing.figure.axes[0]
    tips = sorted(drawing.tips, key=lambda tip: tip.image in samples)
    corners = [(tip.x, tip.y, tip.x + tip.width, tip.y + tip.height) for tip in tips]
    ends_N22 = axis.transData.transform(np.array(corners).reshape(-1, 2)).reshape(-1, 2, 2)
    # An SVG has 72 points per inch, and its y axis points down.
    inside, height, by = axis.bbox.padded(1), drawing.figure.bbox.height, 72 / drawing.figure.dpi
    for tip, ends_22 in zip(tips, ends_N22, strict=True):
        if not inside.contains(*ends_22.mean(axis=0)):
            continue
        (left, right), (top, bottom) = np.sort(ends_22[:, 0]) * by, np.sort(height - ends_22[:, 1]) * by
        text, parent = tip.text, group
        if tip.image in samples:
            text, parent = (
                f"{text}; select for its sample",
                ET.SubElement(group, "a", {"href": f"#{samples[tip.image]}"}),
            )
        elif tip.image and samples:
            text += "; no sample here"
        x, y = (0 if extent else NEAR for extent in (tip.width, tip.height))
        box = {"x": left - x, "y": top - y, "width": right - left + 2 * x, "height": bottom - top + 2 * y}
        mark = ET.SubElement(parent, "rect", {key: f"{value:.1f}" for key, value in box.items()})
        ET.SubElement(mark, "title").text = clean(text)
    return group


def _share_style(group: ET.Element) -> None:
    """Move a style that all points of a scatter have to their group."""
    kinds = {(child.tag, child.attrib.get("style")) for child in group}
    if len(group) > 2 and len(kinds) == 1 and group[0].tag == "use" and "style" not in group.attrib:
        for child in group:
            group.attrib["style"] = child.attrib.pop("style", "")


def _adapt(element: ET.Element) -> None:
    """Remove namespaces, ids of groups and decimals that no screen shows; use colours and font of the page."""
    element.tag = element.tag.partition("}")[2]
    for key, value in list(element.attrib.items()):
        if key.startswith("{"):
            del element.attrib[key]
            element.attrib[key.partition("}")[2]] = value
    if element.tag == "g":
        element.attrib.pop("id", None)
    for key in ("d", "x", "y"):
        if key in element.attrib:
            element.attrib[key] = _LONG_NUMBER.sub(r"\1", " ".join(element.attrib[key].split()))
    style = element.attrib.get("style", "")
    for colour, variable in INK.items():
        style = style.replace(colour, variable)
    if element.tag == "text":
        style = re.sub(r"'[^;]*?sans-serif", "var(--font)", style)
        if element.attrib.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
    if style:
        element.attrib["style"] = style
    if element.text is not None and element.tag != "text":
        element.text = None
    element.tail = None
