"""Parts of small pictures: SVG with colours of the page's style sheet, light and dark at once.

Lengths are CSS pixels. Every text that comes from a file is bounded and escaped. Kinds are classes
of the style sheet.
"""

from collections.abc import Sequence

from markupsafe import Markup, escape

from qvlm_lightning.results.printable import printable

LABEL = 46
"""Characters of a label; of a longer one the end is kept."""


def coloured(colour: str, parts: Sequence[Markup]) -> Markup:
    """Return parts in a colour, a name of the style sheet."""
    style = Markup('<g style="stroke:var({0});fill:var({0})">{1}</g>')
    return style.format(colour, Markup("").join(parts))


def picture(width: float, height: float, words: str, parts: Sequence[Markup]) -> Markup:
    """Return a whole picture; ``words`` say what it shows to those who do not see it."""
    return Markup(
        '<svg role="img" aria-label="{}" width="{:.0f}" '
        'height="{:.0f}" viewBox="0 0 {:.0f} {:.0f}">{}</svg>'
    ).format(printable(words, 200), width, height, width, height, Markup("").join(parts))


def text(x: float, y: float, text: str, kind: str = "n") -> Markup:
    """Return one line of text; every letter of ``kind`` is a class."""
    shown = printable(text, 10 * LABEL)
    shown = shown if len(shown) <= LABEL else f"…{shown[1 - LABEL :]}"
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
        " ".join(kind), x, y, escape(shown)
    )


def rect(
    x: float, y: float, width: float, height: float, kind: str, round_: int = 0, opacity: float = 1
) -> Markup:
    """Return a rectangle with rounded corners."""
    return Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}"{}/>'
    ).format(
        kind,
        x,
        y,
        width,
        height,
        round_,
        "" if opacity == 1 else Markup(' fill-opacity="{:.2f}"').format(opacity),
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def circle(x: float, y: float, kind: str) -> Markup:
    """Return a dot."""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(kind, x, y)
