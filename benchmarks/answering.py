"""How fast a model answers about a picture: its folder in full precision, and its artifacts.

    OMP_NUM_THREADS=1 python benchmarks/answering.py runs/joined ARTIFACT ... --image A.png

Every row runs in a process of its own and writes the same number of tokens, whatever they say.
Full precision runs as transformers runs it (``sdpa``, ``DynamicCache``), in the type that is asked
for; artifacts run packed, in the type in which they were made. With one thread seconds are of
computing, so that other programs do not count.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from _common import clock, write
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.evaluation.generate import generate
from qvlm_lightning.kernels import key_value_cache, single_query_attention
from qvlm_lightning.peak_memory import host_peak

PROMPT = "Write a short paragraph about this picture."


def row(folder: Path, image: Path, tokens: int, dtype: str) -> dict[str, Any]:
    """Return the figures of one folder."""
    packed = (folder / "quantization.json").is_file()
    if packed:
        artifact = load_artifact(folder, packed=True)
        model, processor = artifact.model, artifact.processor
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))
        processor = AutoProcessor.from_pretrained(folder)
    batch = collate([Sample("x", Image.open(image), PROMPT)], processor, with_answer=False)
    kind = next(model.parameters()).dtype
    batch["pixel_values"] = batch["pixel_values"].to(kind)
    answer(model, batch, 2, packed)  # what the first call makes once
    times = answer(model, batch, tokens, packed)
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        "model": folder.parent.name if packed else "full precision",
        "type": str(kind).removeprefix("torch."),
        "MiB on disk": round(sum(file.stat().st_size for file in files) / 2**20),
        "peak MiB": round(host_peak() / 2**20),
        "prompt tokens": int(batch["attention_mask"].sum()),
        "first token s": round(times[1] - times[0], 2),
        "tokens/s": round((len(times) - 2) / (times[-1] - times[1]), 1),
    }


def answer(model: Any, batch: Any, tokens: int, packed: bool) -> list[float]:
    """Return when the answer began and when each of its tokens was there."""
    times = [clock()]

    def seen(_: list[int]) -> bool:
        times.append(clock())
        return False

    if not packed:
        generate(model, batch, (), tokens, stopped=seen)
        return times
    with single_query_attention(model):
        cache = key_value_cache(model.config)
        generate(model, batch, (), tokens, stopped=seen, cache=cache)
    return times


def main() -> None:
    """Run every folder in its own process, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="the model first, then artifacts")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("runs/answering"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    given = options.image, options.tokens, options.dtype
    if options.one:
        print(json.dumps(row(options.folders[0], *given)))
        return
    rows = []
    for folder in options.folders:
        told = [sys.executable, __file__, str(folder), "--one", "--image", str(options.image)]
        told += ["--tokens", str(options.tokens), "--dtype", options.dtype]
        done = subprocess.run(told, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        rows[-1]["x first row"] = round(rows[-1]["tokens/s"] / rows[0]["tokens/s"], 2)
    write(rows, options.out, "answering", "Answers about a picture")


if __name__ == "__main__":
    main()
