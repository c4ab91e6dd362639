"""Pages of one file: jinja2 templates of the package, everything escaped, nothing loaded."""

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
