"""What methods cost on decoders of 4, 8 and 16 layers, and what `qvlm plan --rehearse` says of it.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/calibration.py --out runs/cost

Random weights, small widths; `--embedded` calibrates the embedded model instead. Per method and
number of layers: layer-forwards, CPU-seconds and peak memory, measured and foretold. Behind them,
per method, the straight line through the CPU-seconds, and how much of their variance it explains.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
from _common import write
from transformers import LlavaConfig

from qvlm_lightning.commands._plan_measured import Named, calibrated
from qvlm_lightning.commands._plan_rehearsal import Rehearsal
from qvlm_lightning.commands._plan_stand_in import IMAGE, VOCABULARY, StandIn
from qvlm_lightning.commands._random_model import make_batches
from qvlm_lightning.data.tiny import TinyVQA
from qvlm_lightning.estimate.sizes import MIB
from qvlm_lightning.estimate.workload import Workload, token_count
from qvlm_lightning.methods import Chain
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.tiny_family import Tiny
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

CPU = torch.device("cpu")
METHODS = """rtn mse moving_average sequential smoothquant quarot gptq qvlm_plus_fast awq mbq cdm
flatquant signround qvlm_plus aespa"""
PATCHES = 16


def shape(layers: int, width: int) -> LlavaConfig:
    """Return a LLaVA with a decoder of some layers, and a tower of two that are read."""
    return LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": width // 2,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 4,
            "patch_size": 1,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 11 * width // 4,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
        },
        image_token_index=IMAGE,
    )


class Case:
    """A model and its pairs.

    Args:
        family: of the model.
        batches: of calibration.
        search: number of those of the search.
        patches: of an image in the tower.
        scheme: widths and modes.
    """

    def __init__(
        self, family: HubFamily, batches: list[Any], search: int, patches: int, scheme: Scheme
    ) -> None:
        self.family, self.batches, self.search, self.scheme = family, batches, search, scheme
        model = family.load_model()
        structure = quantize_model(model, family, scheme)
        pairs = sum(len(b["sample_index"]) for b in batches)
        size = len(batches[0]["sample_index"])
        workload = Workload(
            pairs=pairs,
            search_pairs=search * size,
            batch_size=size,
            tokens=-(-token_count(batches) // pairs),
            patches=patches,
            depth=1,
            method=Named.of("rtn").method,
        )
        self.layers = len(structure.towers["language"].units)
        self.rehearsal = Rehearsal(model, family, structure, scheme, workload, CPU)

    def row(self, named: Named, foretell: bool) -> dict[str, Any]:
        """Return what a method costs, and what was foretold."""
        search = self.batches[: self.search]
        took = calibrated(self.family, self.scheme, named, self.batches, search, CPU)
        seconds = sum(took.statistics.values()) + sum(took.search.values())
        row: dict[str, Any] = {
            "method": named.name,
            "layers": self.layers,
            "layer_forwards": sum(took.forwards.values()),
            "cpu_seconds": round(seconds, 2),
            "search_mib": round(took.nbytes / MIB, 1),
        }
        peak = took.held + took.nbytes
        row["peak_mib"] = round(peak / MIB)
        told = self.rehearsal.forecast(named) if foretell else None
        return row | {
            "foretold_forwards": told and told.layer_forwards,
            "foretold_seconds": told and round(told.seconds, 2),
            "ratio": told and round(told.seconds / seconds, 2),
            "foretold_mib": told and round(told.nbytes / MIB),
            "memory_ratio": told and round(told.nbytes / peak, 2),
        }


def with_steps(method: Any, steps: int) -> None:
    """Let a method, or those of a chain, learn for some steps only."""
    if isinstance(method, Chain):
        for one in method.steps:
            with_steps(one, steps)
    elif hasattr(method, "steps"):
        method.steps = steps


def line(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the straight line through the CPU-seconds of a method, by least squares."""
    x, y = (numpy.array([float(r[name]) for r in rows]) for name in ("layers", "cpu_seconds"))
    slope, start = numpy.polyfit(x, y, 1)
    left = float(((y - slope * x - start) ** 2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-12))
    forwards = numpy.diff([r["layer_forwards"] for r in rows]) / numpy.diff(x)
    return {
        "method": rows[0]["method"],
        "seconds_per_layer": round(float(slope), 3),
        "seconds_besides": round(float(start), 3),
        "r_squared": round(1 - left, 4),
        "forwards_per_layer": sorted(set(forwards.tolist())),
    }


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the models to calibrate."""
    scheme = Scheme.parse(options.scheme, activation_mode=options.mode)
    if options.embedded:
        family = Tiny()
        data = TinyVQA(family, options.pairs, options.pairs // 4, 8)
        batches, search = data.calibration_batches(), -(-options.pairs // 32)
        patches = family.vision_positions(family.load_model()) or PATCHES
        return [Case(family, batches, search, patches, scheme)]
    found = []
    for layers in options.layers:
        config = shape(layers, options.width)
        family = StandIn(config, "float32")
        batches = make_batches(options.pairs, options.batch, options.tokens, config)
        search = max(1, len(batches) // 2)
        found.append(Case(family, batches, search, PATCHES + 1, scheme))
    return found


def main() -> int:
    """Measure, foretell, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--methods", nargs="+", default=METHODS.split())
    parser.add_argument("--layers", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--width", type=int, default=64, help="of the decoder")
    parser.add_argument("--tokens", type=int, default=40, help="of a pair")
    parser.add_argument("--pairs", type=int, default=16, help="of calibration")
    parser.add_argument("--batch", type=int, default=4, help="pairs of a batch")
    parser.add_argument("--steps", type=int, help="of learning, instead of those of the presets")
    parser.add_argument("--scheme", default="w4a4")
    parser.add_argument("--mode", default="static_tensor")
    parser.add_argument("--embedded", action="store_true", help="calibrate the embedded model")
    parser.add_argument("--foretell", nargs="*", type=int, help="only for these numbers of layers")
    options = parser.parse_args()
    every, rows = cases(options), []
    for name in options.methods:
        named = Named.of(name)
        if options.steps:
            with_steps(named.method, options.steps)
        if named.optimises:
            print(f"{name}: epochs are not measured here", file=sys.stderr)
        for case in every:
            case.rehearsal.rehearsed = every[0].rehearsal.rehearsed
            chosen = options.foretell is None or case.layers in options.foretell
            rows.append(case.row(named, chosen))
            print(rows[-1], file=sys.stderr, flush=True)
    note = f"{options.scheme} {options.mode}, {options.pairs} pairs"
    write(rows, options.out, "calibration", note)
    if len(every) > 2:
        mine = [[r for r in rows if r["method"] == name] for name in options.methods]
        write([line(one) for one in mine], options.out, "calibration_lines", note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
