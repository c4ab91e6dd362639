"""The model card of an exported folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qvlm_lightning.artifact.card import as_code, license_of, plain_text, results_of

_TRANSFORMERS = """\
```python
# pip install "transformers>=5.17" compressed-tensors accelerate
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this folder", dtype="{dtype}")
processor = AutoProcessor.from_pretrained("this folder")
```

transformers unpacks the weights at the first use: it computes with the quantized values, and saves
neither memory nor time. vLLM has the kernels:

```bash
vllm serve "this folder" --dtype {dtype}
```
"""


def export_card(
    artifact: Path,
    manifest: Mapping[str, Any],
    schemes: Sequence[str],
    notes: Sequence[str],
    config: Mapping[str, Any],
) -> str:
    """Return the text of the card.

    Args:
        artifact: folder that was exported; license and results are those of its card.
        manifest: of the artifact.
        schemes: how layers are quantized, one sentence each.
        notes: what a user should know.
        config: ``config.json`` of the export.
    """
    named: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model_relation": "quantized",
        "tags": ["quantized", "compressed-tensors", "qvlm-lightning"],
    }
    licensed = license_of(artifact)
    if licensed:
        named["license"] = licensed
    base = str(manifest.get("path") or config.get("_name_or_path") or "a model")
    settings = config["quantization_config"]
    rows = {
        "base model": as_code(base),
        "method": as_code(manifest.get("method")),
        "seed": as_code(manifest.get("seed")),
        "calibration samples": str(len(manifest.get("calibration_ids") or [])),
        "format": as_code(settings["format"]),
        "not quantized": as_code(settings["ignore"]),
    }
    lines = [
        f"---\n{yaml.safe_dump(named)}---\n",
        f"# {plain_text(Path(base).name)}, quantized\n",
        "Calibrated and written with qvlm-lightning in the compressed-tensors format.\n",
        "| what | value |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        how_to_use(schemes, notes, config),
        "## Results\n",
        "Of the simulated model, measured before the export:\n",
        results_of(artifact),
    ]
    return "\n".join(lines) + "\n"


def how_to_use(schemes: Sequence[str], notes: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return how layers are quantized and how other programs load the folder, as Markdown.

    Args:
        schemes: how layers are quantized, one sentence each.
        notes: what a user should know.
        config: ``config.json`` of the folder.
    """
    lines = [
        "\nHow layers are quantized:\n",
        *(f"- {plain_text(scheme)}" for scheme in schemes),
        *(f"- note: {plain_text(note)}" for note in notes),
        "\n## Use\n",
        _TRANSFORMERS.format(dtype=config["dtype"]),
    ]
    return "\n".join(lines)
