"""A matplotlib figure as SVG inside a page: the page's font and colours, no identifier twice, nothing from outside."""

import re
from io import StringIO
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from flopcast.reports.figures import canvas

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"
# The page's style sheet sets each of these for light, dark and paper.
COLOURS = {
    canvas.BLUE: "var(--blue)",
    canvas.ORANGE: "var(--orange)",
    canvas.GREEN: "var(--green)",
    canvas.VERMILION: "var(--vermilion)",
    canvas.PURPLE: "var(--purple)",
    canvas.SKY: "var(--sky)",
    canvas.YELLOW: "var(--yellow)",
    canvas.GREY: "var(--grey)",
    canvas.INK: "currentColor",
    canvas.PAPER: "var(--paper)",
}


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as one ``svg`` element. ``name`` prefixes what its parts refer to each other by."""
    with rc_context({"svg.fonttype": "none", "savefig.transparent": True, "svg.hashsalt": name}):
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Written a moment ago by matplotlib, from our own figure.
    root = ElementTree.fromstring(text.getvalue())  # noqa: S314
    for metadata in root.findall(f"{SVG}metadata"):
        root.remove(metadata)
    _rename(root, name)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        if "style" in element.attrib:
            element.set("style", _colours(element.attrib["style"]))
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _rename(root: ElementTree.Element, name: str) -> None:
    """Prefix identifiers that are referred to; drop the others."""
    referred = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            referred.update(re.findall(r"url\(#([^)]+)\)", value))
            if key == XLINK:
                referred.add(value.removeprefix("#"))
    for element in root.iter():
        identifier = element.attrib.pop("id", "")
        if identifier in referred:
            element.set("id", f"{name}-{identifier}")
        for key, value in list(element.attrib.items()):
            if key == XLINK:
                del element.attrib[key]
                element.set("href", f"#{name}-{value.removeprefix('#')}")
            else:
                element.set(key, re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", value))


def _colours(style: str) -> str:
    for colour, value in COLOURS.items():
        style = style.replace(colour, value)
    return style
