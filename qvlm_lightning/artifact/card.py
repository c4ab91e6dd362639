"""The model card of an artifact: ``README.md``, as people and the hub read it."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from qvlm_lightning.files import write_whole

CARD = "README.md"
_RESULTS = ("<!-- results -->", "<!-- end of results -->")
_NOT_EVALUATED = "Not evaluated yet; `eval.py` writes its table here."
_LONGEST = 400  # characters of a value
_TEMPLATE = """\
---
{{ metadata }}---

# {{ base }}, calibrated to {{ scheme }}

Calibrated with qvlm-lightning by `{{ method }}`. {% if elsewhere -%}
Quantized weights lie here in the layout of compressed-tensors: **transformers loads this folder**
without qvlm-lightning (see Use). With it:
{%- else -%}
Quantized weights lie here as packed codes, and
**other programs refuse this folder**. It loads so:
{%- endif %}

```python
import qvlm_lightning

model, processor = qvlm_lightning.load("this folder, or owner/name on the hub")
```

| what | value |
|---|---|
{% for name, value in facts.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
{{ elsewhere }}
## Results

{{ results }}
"""


def model_card(
    manifest: Mapping[str, Any], base: str, license_of_base: str | None, elsewhere: str = ""
) -> str:
    """Return the text of a model card.

    Args:
        manifest: of the artifact.
        base: name or folder of the full-precision model.
        license_of_base: as its own card names it; ``None`` where nothing does.
        elsewhere: how other programs load the folder, Markdown; nothing where they do not.

    Example:
        >>> text = model_card({"method": "rtn", "scheme_name": "w4a16"}, "llava", "apache-2.0")
        >>> "license: apache-2.0" in text, "| method | `rtn` |" in text
        (True, True)
    """
    scheme = str(manifest.get("scheme_name", "unknown"))
    ids = manifest.get("calibration_ids") or []
    facts = {
        "base model": as_code(base),
        "license of the base model": license_of_base or "see the base model",
        "scheme": as_code(scheme),
        "scheme, all fields": as_code(manifest.get("scheme")),
        "activation mode": as_code(manifest.get("activation_mode")),
        "method": as_code(manifest.get("method")),
        "settings of the method": as_code(manifest.get("settings")),
        "objective and candidates": as_code([manifest.get(x) for x in ("objective", "candidates")]),
        "calibration set": f"{len(ids)} samples, the first {as_code(ids[0]) if ids else 'none'}; "
        "all in `quantization.json`",
        "seed": as_code(manifest.get("seed")),
        "versions": as_code(manifest.get("versions")),
    }
    tags = ["quantized", scheme.partition("+")[0]]
    named: dict[str, Any] = {"library_name": "qvlm-lightning", "tags": tags}
    if elsewhere:
        tags += ["compressed-tensors", "qvlm-lightning"]
        named |= {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if license_of_base:
        named["license"] = license_of_base
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists():
        named["base_model"] = base
    markdown = Environment(undefined=StrictUndefined, autoescape=False)
    results = "\n".join([_RESULTS[0], _NOT_EVALUATED, _RESULTS[1]])
    text: str = markdown.from_string(_TEMPLATE).render(
        metadata=yaml.safe_dump(named),
        base=plain_text(Path(base).name or base),
        scheme=plain_text(scheme),
        method=plain_text(manifest.get("method", "unknown")),
        facts=facts,
        elsewhere=elsewhere,
        results=results,
    )
    return text + "\n"


def license_of(folder: Path) -> str | None:
    """Return the license that a model folder's own card names, or ``None``.

    Args:
        folder: of the full-precision model; it need not exist.
    """
    card = folder / CARD
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = head and re.search(r"^license:\s*['\"]?([\w.-]{1,40})['\"]?\s*$", head[1], re.MULTILINE)
    return found[1] if found else None


def with_results(card: str, table: str) -> str:
    """Return a card with another table of results.

    Args:
        card: text of :func:`model_card`; returned as it is where it has no place for results.
        table: Markdown.
    """
    before, start, rest = card.partition(_RESULTS[0])
    _, end, after = rest.partition(_RESULTS[1])
    return card if not end else f"{before}{start}\n{table.strip()}\n{end}{after}"


def results_of(folder: Path) -> str:
    """Return the results that an artifact's card has, as Markdown; a sentence where it has none.

    Args:
        folder: the artifact.
    """
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    _, _, rest = text.partition(_RESULTS[0])
    found, end, _ = rest.partition(_RESULTS[1])
    return found.strip() if end else _NOT_EVALUATED


def put_results(folder: Path, table: str) -> None:
    """Write results into the card of an artifact; without a card, or where nothing may be written,
    everything stays as it is.

    Args:
        folder: the artifact.
        table: Markdown.
    """
    card = folder / CARD
    if not card.is_file() or not os.access(card, os.W_OK) or not os.access(folder, os.W_OK):
        return
    text = card.read_text(encoding="utf-8", errors="replace")
    write_whole(card, with_results(text, table))


def plain_text(value: Any) -> str:
    """Return a value on one line, without what Markdown, HTML or a terminal would act on."""
    text = "".join(c if c.isprintable() else " " for c in str(value))[:_LONGEST]
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def as_code(value: Any) -> str:
    """Return a value as code in a cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(c if c.isprintable() else " " for c in text)
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return f"`{short.replace('`', chr(39)).replace('|', chr(92) + '|')}`"
