"""What a program for another tool reads and writes; a file beside it, imported by its bare name.

``job.json``, paths relative to its folder unless absolute::

    {"method": "gptq", "model": "<folder>", "dtype": "float32", "inputs": "inputs.safetensors",
     "seed": 0, "symmetric": false,
     "layers": {"<module>": {"weight_bits": 4, "activation_bits": 16, "group_size": null}}}

Inputs are named ``<pair>/<argument of the model>``, one pair after another, without padding. The
program writes ``weights.safetensors``: the dequantized weight of every layer, [O, I], by the name
of its module; and ``facts.json``: seconds and notes.
"""

import json
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

WEIGHTS, FACTS = "weights.safetensors", "facts.json"


class Exchange:
    """The folder of a job, and the clock of its work.

    Args:
        folder: where ``job.json`` lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        self.layers: dict[str, dict[str, Any]] = self.job["layers"]
        self.notes: list[str] = []
        self._began = time.perf_counter(), time.process_time()

    def model(self) -> Any:
        """Return the full-precision model, in ``eval()`` mode."""
        import torch
        from transformers import AutoModelForImageTextToText

        dtype = getattr(torch, self.job["dtype"])
        return AutoModelForImageTextToText.from_pretrained(self.job["model"], dtype=dtype).eval()

    def pairs(self) -> list[dict[str, Any]]:
        """Return the arguments of the model, one calibration pair each."""
        from safetensors.torch import load_file

        pairs: dict[str, dict[str, Any]] = {}
        for name, value in load_file(self.folder / self.job["inputs"]).items():
            pair, _, argument = name.partition("/")
            pairs.setdefault(pair, {})[argument] = value
        return [pairs[name] for name in sorted(pairs)]

    def write(self, weights: Mapping[str, Any]) -> None:
        """Write the weights, then what they cost since this object was made.

        Args:
            weights: dequantized, by the name of the module.
        """
        from safetensors.torch import save_file

        kept = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
        save_file(kept, self.folder / WEIGHTS)
        began, computing = self._began
        facts = {
            "seconds": round(time.perf_counter() - began, 3),
            "cpu_seconds": round(time.process_time() - computing, 3),
            "notes": self.notes,
        }
        (self.folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def asked_for_versions(packages: tuple[str, ...]) -> bool:
    """Print the versions of packages as JSON and return true, where ``--versions`` is given; a
    package that is missing has none.
    """
    if sys.argv[1:] != ["--versions"]:
        return False
    installed: dict[str, str | None] = {}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = None
    print(json.dumps(installed))
    return True
