"""A figure as SVG inside an HTML page: its text in the page's own font, legible on light and on dark.

Black, white and the greys of a figure become the page's ink, its card and what lies between; a colour too dark for the
dark card is lightened there. Figures that colour a plane (images, meshes) keep their colours, on a light card: text on
them was chosen for these. So in other figures text stands beside bars and lines, not on them.
"""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

DARK_CARD = "#1b1e24"  # as in page.html
LEAST_CONTRAST, LIGHTENED_CONTRAST = 3.0, 4.5  # of shapes, of text: WCAG 2.2, level AA
PIXELS_PER_INCH = 100
LIGHTER = 0.05  # a step towards white
GREY = 0.05  # largest distance between the parts of a colour that passes for grey
COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline(figure: Figure, prefix: str, label: str) -> str:
    """The figure as one ``<svg>`` element: no address of anything outside it, every id begun with ``prefix``.

    Args:
        prefix: tells ids apart from those of the other figures of the page.
        label: what a reader who does not see it is told.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "prepack-bench", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=METADATA, transparent=True)
    root = ElementTree.fromstring(text.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    as_drawn = plane(figure)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            value = re.sub(r"url\(#", f"url(#{prefix}-", value)
            if name == "id":
                value = f"{prefix}-{value}"
            elif name == "href" and value.startswith("#"):
                value = f"#{prefix}-{value[1:]}"
            elif name == "style" or name in {"fill", "stroke"}:
                value = re.sub(r"(font(?:-family)?:[^;]*?)'[^;]*", r"\1var(--sans)", value)
                value = value if as_drawn else COLOUR.sub(lambda found: adapt(found[0]), value)
            element.set(name, value)
    width, height = (f"{PIXELS_PER_INCH * inches:.0f}" for inches in figure.get_size_inches())
    root.attrib.update({"role": "img", "aria-label": label, "width": width, "height": height})
    root.attrib.pop("version", None)
    return ElementTree.tostring(root, encoding="unicode")


def plane(figure: Figure) -> bool:
    """Whether any axes of the figure hold an image or a mesh of colours."""
    return any(
        axes.images or any(isinstance(drawn, QuadMesh) for drawn in axes.collections) for axes in figure.get_axes()
    )


def adapt(colour: str) -> str:
    """A colour ``#rrggbb`` of a figure as CSS that suits the page's light and its dark card."""
    parts = to_rgb(colour)
    if max(parts) - min(parts) < GREY:
        share = round(100 * (1 - sum(parts) / 3))
        if share in {0, 100}:
            return "currentColor" if share else "var(--card)"
        return f"color-mix(in srgb, currentColor {share}%, var(--card))"
    if contrast(parts) >= LEAST_CONTRAST:
        return colour
    red, green, blue = parts
    while contrast((red, green, blue)) < LIGHTENED_CONTRAST:
        red, green, blue = (part + LIGHTER * (1 - part) for part in (red, green, blue))
    return f"light-dark({colour}, {to_hex((red, green, blue))})"


def contrast(colour: tuple[float, float, float], ground: str = DARK_CARD) -> float:
    """The contrast ratio of two colours as WCAG defines it, 1 to 21."""
    low, high = sorted((_luminance(colour), _luminance(to_rgb(ground))))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: tuple[float, float, float]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
