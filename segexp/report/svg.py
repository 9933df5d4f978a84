"""A matplotlib figure as SVG inside a page: small, without ids of its own, in the colours and the font of the page."""

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from segexp.records.formatting import BLACK, BLUE, image_bytes
from segexp.report.figures import GRID, MUTED, TEXT, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = {
    TEXT: "currentColor",
    BLACK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    BLUE.lower(): "var(--blue)",
}
"""What is drawn in these colours follows the page, light or dark: the blue is too dark on black."""

_LONG_NUMBER = re.compile(r"(\.\d)\d+")


def inline_svg(figure: "Figure", name: str, label: str) -> str:
    """``figure`` as an <svg> element for HTML, with ``label`` for those who do not see it.

    name: told apart from all other figures of the page, for what the figure itself refers to (clips, markers).
    """
    from matplotlib import rc_context

    with styled(), rc_context({"svg.hashsalt": name}):
        written = image_bytes(figure, "svg", transparent=True)
    root = ET.fromstring(written)
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
    root.attrib |= {"role": "img", "aria-label": label, "style": f"max-width:{1.45 * width:.0f}px"}
    return ET.tostring(root, encoding="unicode")


def _share_style(group: ET.Element) -> None:
    """The points of a scatter have one style, which need not stand at each of them."""
    styles = {child.attrib.get("style") for child in group}
    if (
        len(group) > 2
        and len(styles) == 1
        and all(child.tag == "use" for child in group)
        and "style" not in group.attrib
    ):
        for child in group:
            group.attrib["style"] = child.attrib.pop("style", "")


def _adapt(element: ET.Element) -> None:
    """HTML has no namespaces; groups are never referred to; one digit after the point is finer than any screen."""
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
