"""A small calibration of the embedded model, with everything it prints and writes."""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from qvlm_lightning.cli import train_main
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.results.compare import compare
from qvlm_lightning.results.compare_examples import Pictures, changed_examples
from qvlm_lightning.results.entries import Entry
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.variant import Variant

CONFIGS = Path(__file__).parents[2] / "configs"


class Finished(NamedTuple):
    """A run that has ended."""

    root: Path
    said: str
    """On standard output."""
    told: str
    """On standard error."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    root = tmp_path_factory.mktemp("finished") / "run"
    files = ("base", "methods/qvlm", "schemes/w4a4", "models/tiny", "data/tiny")
    command = [
        "fit",
        *(f"--config={CONFIGS / name}.yaml" for name in files),
        "--model.epochs=1",
        "--model.entropy_samples=256",
        "--model.method.percentiles=[1.0, 0.99]",
        "--model.method.per=layer",
        "--model.sensitivity=true",
        "--data.calibration_pairs=4",
        "--data.search_pairs=4",
        "--data.batch_size=4",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        f"--trainer.default_root_dir={root}",
    ]
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        train_main(command)
    return Finished(root, said.getvalue(), told.getvalue())


@pytest.fixture
def compared():
    """A comparison of three models in groups of questions, one of them with long words, and the
    changed answers.
    """
    count = 24
    image = Image.new("RGB", (64, 48), "teal")
    samples = {
        f"q{i}": Sample(f"q{i}", image, "Which colour? " + "long" * 60) for i in range(count)
    }
    entries = []
    for place, name in enumerate(("fp", "rtn", "qvlm")):
        variant = (
            Variant("tiny") if name == "fp" else Variant("tiny", name, "w4a4", "static_tensor")
        )
        texts = ["no" * 90 if place and i % (place + 2) == 0 else "red" for i in range(count)]
        answered = Predictions(
            variant=variant, source=name, base="weights", seconds=1.0,
            ids=list(samples), texts=texts, answers=["red"] * count, choices=[0] * count,
            families=["color"] * count, groups=[[f"kind/{i % 3}"] for i in range(count)],
            log_probs=None,
        )  # fmt: skip
        entries.append(Entry(name + "-a-model-with-a-long-name" * 2 * bool(place), answered, name))
    (found,) = compare(entries)
    pictures = Pictures()
    changes = {e.label: changed_examples(found, e, samples, pictures, 4) for e in found.others}
    return [found], {found.name: changes}
