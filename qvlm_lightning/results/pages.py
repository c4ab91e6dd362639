"""Pages of one file: jinja2 templates of the package, everything escaped, nothing loaded."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qvlm_lightning.results.printable import printable


@cache
def environment() -> Environment:
    """Return the templates of the package."""
    found = Environment(
        loader=PackageLoader("qvlm_lightning.results", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["shown"] = printable
    return found


def page(template: str, **values: Any) -> str:
    """Return a whole HTML document; the same values give the same document.

    Args:
        template: name of a template of the package, such as ``run.html``.
        values: what it shows; strings are escaped.
    """
    return environment().get_template(f"{template}.j2").render(**values)


def parted(text: str) -> tuple[str, str]:
    """Part a figure from its interval and what follows: a p-value, or words.

    Example:
        >>> parted("75.0 [60.1, 85.2] p=.031"), parted("12")
        (('75.0', '[60.1, 85.2] p=.031'), ('12', ''))
    """
    value = re.fullmatch(r"(\S+) (\[.*\](?: (?:p=\S+|seeds disagree))?)", text)
    return (text, "") if value is None else (value[1], value[2])
