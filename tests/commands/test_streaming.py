"""The random model and what is measured on it: flat memory, linear time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qvlm_lightning.commands._random_model import RandomFamily, make_batch, make_folder
from qvlm_lightning.commands.streaming import main
from qvlm_lightning.errors import InputError


def run(tmp_path: Path, **options: Any) -> dict[str, Any]:
    """Measure in a process of its own: peak memory is that of a process."""
    out = tmp_path / "figures.json"
    given = {"vocabulary": 500, "folder": tmp_path / "model", "json": out, **options}
    words = [f"--{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "qvlm_lightning", "streaming", *words]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(out.read_text())


def test_the_folder_is_a_model_that_transformers_loads(tmp_path):
    make_folder(tmp_path, layers=2, width=128, vocabulary=50)
    model = RandomFamily(str(tmp_path)).load_model()
    assert len(list(tmp_path.glob("layer-*.safetensors"))) == 2
    batch = make_batch(pairs=2, tokens=40, vocabulary=50)
    inputs = {n: x for n, x in batch.items() if n not in ("sample_index", "has_image")}
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    logits = model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert logits.std() > 0.1


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--method=veo", "allowed: rtn, sequential, cdm"),
        ("--search_pairs=9", "allowed: 1 to 8"),
        ("--width=100", "multiple of 128"),
        ("--steps=-1", "steps is -1; allowed: 0 or more"),
    ],
)
def test_faults_are_one_sentence(option, complaint):
    with pytest.raises(InputError, match=complaint):
        main([option])


@pytest.mark.slow
def test_memory_is_flat_in_the_layers_and_percentiles_are_those_in_memory(tmp_path):
    """Wide layers, so that one more of them would be seen."""
    sizes = {"width": 768, "tokens": 64, "pairs": 2, "search_pairs": 1, "method": "sequential"}
    few, many = (run(tmp_path, layers=n, **sizes) for n in (6, 24))
    assert many["model_bytes"] > 3 * few["model_bytes"]
    peaks = [x["peak_bytes_above_baseline"] for x in (few, many)]
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < many["model_bytes"]
    whole = run(tmp_path, layers=24, streaming="false", **sizes)
    assert whole["percentiles"] == many["percentiles"]
    assert whole["peak_bytes_above_baseline"] > many["model_bytes"]


@pytest.mark.slow
def test_a_streamed_optimisation_learns_what_one_in_memory_learns(tmp_path):
    sizes = {"layers": 24, "width": 1024, "tokens": 64, "pairs": 2, "search_pairs": 1}
    sizes |= {"method": "rtn", "steps": 2}
    streamed = run(tmp_path, **sizes)
    again = run(tmp_path, **sizes, streaming="false", activation_checkpointing="true")
    whole = run(tmp_path, **sizes, streaming="false")
    assert streamed["learned"] == again["learned"] == whole["learned"]
    assert len(set(streamed["learned"])) > 10
    peaks = [x["peak_bytes_above_baseline"] for x in (streamed, again, whole)]
    assert peaks[0] < streamed["model_bytes"] < peaks[1] < peaks[2]
