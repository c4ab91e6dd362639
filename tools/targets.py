"""What each format of other programs holds of every scheme in ``configs/schemes``: a table.

    python -m tools.targets                  # prints the table of docs/export.md
    python -m tools.targets --folders DIR    # and writes what compressed-tensors holds

The folders hold the embedded model with ranges that were not calibrated: they show names, types and
configurations, not answers.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from qvlm_lightning.errors import InputError
from qvlm_lightning.export import save_compressed
from qvlm_lightning.export.compressed_config import held_as, scheme_in_vllm, served_by_vllm
from qvlm_lightning.export.gguf_blocks import block_type
from qvlm_lightning.export.layers import LayerScheme
from qvlm_lightning.quant.scheme import OFF, PARTS, Scheme

SCHEMES = Path(__file__).parents[1] / "configs" / "schemes"
_SYMMETRIC = {"weight_symmetric": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "w8a8": _SYMMETRIC,
    "w4a8": _SYMMETRIC,
    "w4a4": _SYMMETRIC | {"activation_mode": "dynamic_token"},
    "w6a6": _SYMMETRIC | {"activation_mode": "dynamic_token"},
    "w4a16": {"group_size": 32},
    "w8a8_dynamic_sym": {"activation_mode": "static_channel"},
}
"""Scheme -> fields to change for one more row: what vLLM takes of it, or what a format refuses."""


def schemes() -> dict[str, Scheme]:
    """Return the schemes of the configurations by their names there."""
    found = {}
    for path in sorted(SCHEMES.glob("*.yaml")):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]["scheme"]
        found[path.stem] = Scheme.from_dict(given)
        if path.stem in VARIANTS:
            changed = VARIANTS[path.stem]
            told = ", ".join(f"{key} {value}".lower() for key, value in changed.items())
            found[f"{path.stem}, {told}"] = replace(found[path.stem], **changed)
    return found


def table() -> list[str]:
    """Return the rows of the table, Markdown."""
    head = ["| scheme | compressed-tensors | vLLM 0.33 | GGUF |", "|---|---|---|---|"]
    return head + [
        f"| `{name}` | {_compressed(scheme)} | {_served(scheme)} | {_gguf(scheme)} |"
        for name, scheme in schemes().items()
    ]


def _layer(scheme: Scheme, part: str) -> LayerScheme:
    widths = scheme.part(part)
    active = widths.activation_bits < OFF
    return LayerScheme(
        widths.weight_bits,
        scheme.weight_symmetric,
        scheme.group_size,
        widths.activation_bits if active else None,
        active and scheme.activation_mode == "dynamic_token",
    )


def _layers(scheme: Scheme) -> list[LayerScheme]:
    """Return the schemes of the quantized parts, once each."""
    parts = [part for part in PARTS if scheme.part(part).weight_bits < OFF]
    return list(dict.fromkeys(_layer(scheme, part) for part in parts))


def _refused(scheme: Scheme, target: Any) -> str | None:
    try:
        replace(scheme, target=target)
    except InputError as error:
        return f"refused: {str(error).partition(': ')[2]}"
    return None


def _compressed(scheme: Scheme) -> str:
    formats = held_as(_layers(scheme))
    return _refused(scheme, "compressed-tensors") or ", ".join(
        dict.fromkeys(f"`{held}`" for held in formats.values())
    )


def _served(scheme: Scheme) -> str:
    if _refused(scheme, "compressed-tensors"):
        return "–"
    told = []
    for layer, held in held_as(_layers(scheme)).items():
        chosen = scheme_in_vllm(layer, held)
        known = "" if chosen is None or served_by_vllm(layer, held) else ", no kernel known"
        told.append(f"{chosen or 'refused'}{known}")
    return "; ".join(told)


def _gguf(scheme: Scheme) -> str:
    refused = _refused(scheme, "gguf")
    if refused or scheme.part("language").weight_bits == OFF:
        return refused or "refused: the decoder is not quantized"
    language = _layer(scheme, "language")
    return f"`{block_type(language.weight_bits, language.symmetric)}`, decoder alone"


def write_folders(root: Path) -> None:
    """Write the embedded model by every scheme that compressed-tensors holds.

    Args:
        root: an empty or new folder.
    """
    from qvlm_lightning.artifact import Artifact
    from qvlm_lightning.models.llava import Llava
    from qvlm_lightning.models.tiny import WEIGHTS
    from qvlm_lightning.nn.surgery import quantize_model

    for name, scheme in schemes().items():
        if _refused(scheme, "compressed-tensors"):
            continue
        family = Llava(str(WEIGHTS))
        model = family.load_model()
        structure = quantize_model(model, family, scheme, accepted=True)
        for site in structure.sites:
            site.quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0), 1.0)
        manifest: Mapping[str, Any] = {"method": "none", "scheme": scheme.to_dict()}
        made = Artifact(model, family.load_processor(), dict(manifest), structure)
        save_compressed(root / name.replace(", ", "-").replace(" ", "-"), made)


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.targets", description=__doc__)
    parser.add_argument("--folders", type=Path, metavar="DIR", help="also write folders")
    options = parser.parse_args(argv)
    print("\n".join(table()))
    if options.folders is not None:
        write_folders(options.folders)
    return 0


if __name__ == "__main__":
    sys.exit(main())
