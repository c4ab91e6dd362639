"""The random model and what is measured on it: flat memory, linear time."""

import json
import multiprocessing.dummy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from qvlm_lightning.calibration import VisualEncoderOptimization
from qvlm_lightning.callbacks import PercentileSearch
from qvlm_lightning.commands import streaming
from qvlm_lightning.commands._random_model import (
    RandomFamily,
    RandomPairs,
    make_batches,
    make_folder,
    shape_of,
    small_shape,
)
from qvlm_lightning.commands.streaming import main
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import SequentialSearch
from qvlm_lightning.quant.scheme import Scheme

SHAPES = Path(__file__).parents[2] / "configs" / "models" / "shapes"
LLAVA = shlex.quote(f"--shape={SHAPES / 'llava-1.5-7b'}")


def run(tmp_path: Path, **options: Any) -> dict[str, Any]:
    """Measure in a process of its own: peak memory is that of a process."""
    out = tmp_path / "figures.json"
    given = {"vocabulary": 500, "folder": tmp_path / "model", "json": out, **options}
    words = [f"--{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "qvlm_lightning", "streaming", *words]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(out.read_text())


def test_the_folder_is_a_model_that_transformers_loads(tmp_path):
    config = small_shape(layers=2, width=128, vocabulary=50)
    make_folder(tmp_path, config)
    model = RandomFamily(str(tmp_path)).load_model()
    assert len(list(tmp_path.glob("layer-*.safetensors"))) == 2
    batch, last = make_batches(pairs=3, batch_size=2, tokens=40, config=config)
    assert [len(x["sample_index"]) for x in (batch, last)] == [2, 1]
    assert batch["labels"][0].ne(-100).sum() == 2  # an eighth of 40 - 17 words
    inputs = {n: x for n, x in batch.items() if n not in ("sample_index", "has_image")}
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    logits = model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert logits.std() > 0.1


def test_a_shape_is_taken_from_its_config(tmp_path):
    config = shape_of(SHAPES / "llava-1.5-7b", layers=2)
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (4096, 2)
    (batch,) = make_batches(pairs=1, batch_size=8, tokens=640, config=config)
    assert batch["input_ids"].eq(config.image_token_index).sum() == 576
    assert batch["pixel_values"].shape == (1, 3, 336, 336)
    assert str(config.dtype) == "torch.bfloat16"


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--method=veo", "allowed: rtn, sequential, cdm"),
        ("--search_pairs=9", "search_pairs is 9; allowed: 1 to 8"),
        ("--search_pairs=0", "search_pairs is 0; allowed: 1 to 8"),
        ("--pairs=0", "pairs is 0; allowed: 1 or more"),
        ("--width=100", "width is 100; allowed: multiples of 128"),
        ("--width=0", "width is 0; allowed: multiples of 128"),
        ("--width=-128", "width is -128; allowed: multiples of 128"),
        ("--layers=0", "layers is 0; allowed: 1 or more"),
        ("--layers=-1", "layers is -1; allowed: 1 or more"),
        ("--vocabulary=4", "vocabulary is 4; allowed: 5 or more"),
        ("--batch_size=0", "batch_size is 0; allowed: 1 or more"),
        ("--max_depth=0", "max_depth is 0; allowed: 1 or more"),
        ("--device=tpu", "device 'tpu' is not known; allowed: cpu, cuda"),
        ("--scheme=w99", "scheme 'w99' cannot be read; allowed: 'w4a4'"),
        ("--activation_checkpointing=true", "together with streaming true.*allowed: streaming fal"),
        (f"{LLAVA} --layers=0", "layers is 0; allowed: 1 or more"),
        (f"{LLAVA} --width=128", "width 128 is not allowed together"),
        (f"{LLAVA} --vocabulary=50", "vocabulary 50 is not allowed toge"),
        ("--tokens=20", "20 tokens is not allowed; at least 32"),
        ("--device=cuda", "no such device here; allowed: cpu"),
        ("--shape=nowhere", "'nowhere' has no config.json"),
        (
            shlex.quote(f"--shape={SHAPES / 'qwen2.5-vl-7b'}"),
            "is of a 'qwen2_5_vl' model; allowed: 'llava'",
        ),
        ("--steps=-1", "steps is -1; allowed: 0 or more"),
        ("--pairs=16 --steps=3", "steps is 3; allowed: multiples of the 2 batches of an epoch"),
        ("--measure_every_n_epochs=0", "measure_every_n_epochs is 0; allowed: 1 or more"),
    ],
)
def test_faults_are_one_sentence_and_leave_nothing(option, complaint, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=complaint):
        main([*shlex.split(option), f"--folder={tmp_path / 'models'}"])
    assert not list(tmp_path.iterdir())


def test_a_shape_that_is_no_json_is_named(tmp_path):
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json' is no JSON object"):
            shape_of(tmp_path, layers=None)


def counts(batches: list[Any]) -> list[int]:
    """Return how many pairs every batch has."""
    return [len(batch["sample_index"]) for batch in batches]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """What would be measured: options, the model's folder, and the pairs."""
    found: list[Any] = []

    def note(*given: Any) -> dict[str, Any]:
        found[:] = given
        return {}

    def start(**options: Any) -> Any:
        words = [f"--{name}={value}" for name, value in options.items()]
        main([*words, f"--folder={tmp_path / 'models'}"])
        return found

    monkeypatch.setattr(streaming, "measure", note)
    monkeypatch.setattr(streaming, "get_context", lambda _: multiprocessing.dummy)
    return start


def test_a_model_is_made_once_and_only_for_its_own_configuration(made, tmp_path):
    sizes = {"layers": 2, "width": 128}
    _, small, *_ = made(**sizes, vocabulary=50)
    times = {f: f.stat().st_mtime_ns for f in small.iterdir()}
    _, large, *_ = made(**sizes, vocabulary=60)
    embedding = RandomFamily(str(large)).load_model().get_input_embeddings()
    assert embedding.weight.shape == (60, 128)
    _, again, *_ = made(**sizes, vocabulary=50)
    assert {f: f.stat().st_mtime_ns for f in again.iterdir()} == times
    config = small_shape(2, 128, 50)
    config.vision_config.num_hidden_layers = 3
    config.save_pretrained(tmp_path / "shape")
    options, other, *_ = made(shape=tmp_path / "shape")
    assert other not in (small, large)
    assert (options.layers, options.width, options.vocabulary) == (2, 128, 50)
    config.save_pretrained(tmp_path / "copy")
    assert made(shape=tmp_path / "copy")[1] == other


def test_the_search_takes_all_pairs_unless_told(made):
    sizes = {"layers": 1, "width": 128, "vocabulary": 50, "pairs": 4}
    options, _, data = made(**sizes)
    assert [counts(data.calibration_batches()), counts(data.search_batches())] == [[4], [4]]
    assert options.search_pairs == 4
    _, _, data = made(**sizes, search_pairs=3, batch_size=2)
    assert [counts(data.calibration_batches()), counts(data.search_batches())] == [[2, 2], [2, 1]]
    assert [counts(data.rank_batches(rank, 2)) for rank in range(2)] == [[1, 1], [1, 1]]


@pytest.mark.slow
def test_every_step_is_timed_and_the_calibration_is_that_of_train_py(tmp_path):
    """Q-VLM whole: what a run of the Trainer decides, and the steps that it took."""
    sizes = {"layers": 2, "width": 128, "pairs": 2, "search_pairs": 1, "tokens": 40}
    figures = run(tmp_path, **sizes, batch_size=1, steps=2, method="sequential")
    steps = ["open", "statistics", "search", "optimisation", "artifact"]
    assert list(figures["seconds"]) == list(figures["peak_bytes_by_step"]) == steps
    assert all(x > 0 for x in figures["seconds"].values())
    assert figures["device_peak_bytes_by_step"] == {}
    (folder,) = (tmp_path / "model").iterdir()
    assert sorted(p.suffix for p in folder.iterdir()) == [".json"] * 2 + [".safetensors"] * 3
    config = shape_of(folder, layers=None)
    data = RandomPairs(RandomFamily(str(folder)), 2, 1, 1, tokens=40, config=config)
    module = VisualEncoderOptimization(
        data.family, Scheme.parse("w4a4"), SequentialSearch(), epochs=1
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[PercentileSearch()],
        default_root_dir=tmp_path / "run",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule=data)
    assert figures["percentiles"] == module.state.percentiles
    learned = [float(p.detach().double().sum()) for p in module.quantizer_parameters()]
    assert figures["learned"] == learned


@pytest.mark.slow
def test_memory_is_flat_in_the_layers_and_percentiles_are_those_in_memory(tmp_path):
    """Wide layers, so that one more of them would be seen."""
    sizes = {"width": 1536, "pairs": 4, "search_pairs": 2, "method": "sequential"}
    few, many = (run(tmp_path, layers=n, **sizes) for n in (5, 18))
    assert many["model_bytes"] > 3 * few["model_bytes"]
    peaks = [x["peak_bytes_above_baseline"] for x in (few, many)]
    assert peaks[1] < 1.1 * peaks[0], peaks
    assert peaks[1] < many["model_bytes"]
    whole = run(tmp_path, layers=18, streaming="false", **sizes)
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
