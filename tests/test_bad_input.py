"""Every mistake of a user ends early: one sentence, exit code 2, no traceback, nothing written."""

import errno
import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from qvlm_lightning.cli import train_main
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.models.tiny import WEIGHTS

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PRESET = [f"--config={CONFIGS / 'base.yaml'}"] + [
    f"--config={CONFIGS / room}.yaml"
    for room in ("methods/cdm", "schemes/w8a8", "models/tiny", "data/tiny")
]
SMALL = [
    "--trainer.accelerator=cpu",
    "--data.init_args.calibration_pairs=4",
    "--data.init_args.search_pairs=4",
    "--data.init_args.batch_size=4",
    "--data.init_args.evaluation_count=20",
]
CALLBACK = "{class_path: qvlm_lightning.callbacks.%s, init_args: {%s}}"


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def refused(capfd, run):
    """Run the program on what it must refuse, and return the sentence it says."""

    def refuse(*options: str, program=train_main, written: bool = False) -> str:
        arguments = ["fit", *PRESET, *SMALL, f"--trainer.default_root_dir={run}", *options]
        with pytest.raises(SystemExit) as end:
            program(arguments)
        error = capfd.readouterr().err
        assert end.value.code == 2, error
        assert "Traceback" not in error
        last = error.rstrip("\n").rpartition("\n")[2]
        assert last.startswith("error: "), error
        assert written or not run.exists(), sorted(p.name for p in run.rglob("*"))
        return last

    return refuse


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "16-mixed"])
def test_a_precision_of_the_trainer(refused, precision: str) -> None:
    sentence = refused(f"--trainer.precision={precision}")
    assert f"trainer.precision is '{precision}'" in sentence
    assert "family.dtype" in sentence


def overlay(folder: Path, text: str) -> str:
    path = folder / "overlay.yaml"
    path.write_text(text, encoding="utf-8")
    return f"--config={path}"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.nonsense=1", "'nonsense' is not known; QuantModule takes family, scheme, method"),
        ("--trainer.nonsense=1", "--trainer.nonsense=1"),
        ("--data.init_args.batch_size=many", "data.batch_size: expected int, got many"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
        ("--model=Nonsense", "model: Nonsense is not a class known here"),
        ("--data.init_args.calibration_pairs=0", "calibration_pairs is 0; allowed"),
        ("--data.init_args.search_pairs=5", "search_pairs is 5; allowed are 1 to"),
        ("--data=VQADataModule", "data: Expected an instantiatable class, but is abstract"),
        ("--model.scheme.language.weight_bits=1", "weight_bits 1 is not allowed; 2 to 8, or 16"),
        ("--model.scheme.vision.activation_bits=9", "activation_bits 9 is not allowed; 2 to 8"),
        ("--model.scheme.projector.weight_bits=four", "weight_bits: expected int, got four"),
        ("--model.scheme.activation_mode=magic", "'static_tensor', 'static_channel', 'dynamic"),
        ("--model.scheme.group_size=7", "divides the inputs of no quantized Linear layer"),
        ('--model.scheme.ignore=["no_such_layer"]', "'no_such_layer' matches no Linear"),
        ('--model.scheme.ignore=["("]', "'(' is no regular expression"),
        ("--model.every_n_epochs=0", "every_n_epochs 0"),
        ("--model.family.outlier_scale=0.5", "outlier_scale 0.5 is below 1"),
        ("--model.family.sink_scale=0.5", "sink_scale 0.5 is below 1"),
        ("--ckpt_path=nowhere.ckpt", "nowhere.ckpt"),
    ],
)
def test_a_wrong_option(refused, option: str, words: str) -> None:
    assert words in refused(option)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("EntropyRepartition", "max_depth: 0", "max_depth 0 is not allowed"),
        ("EntropyRepartition", "threshold: middle", "middle"),
        ("ResumePoint", "every_n_steps: 0", "every_n_steps 0"),
        ("QuantizerMonitor", "every_n_epochs: 0", "every_n_epochs is 0"),
    ],
)
def test_a_wrong_argument_of_a_callback(refused, tmp_path, name, arguments, words) -> None:
    text = f"trainer:\n  callbacks+:\n    - {CALLBACK % (name, arguments)}\n"
    assert words in refused(overlay(tmp_path, text))


@pytest.mark.parametrize(
    "grid",
    [[1.0, 0.5], [1.5, 1.0], [1.0, -1.0], [1.0, 1.0]],
    ids=["half", "above 1", "below 0", "flat"],
)
def test_a_percentile_outside_its_range(refused, grid: list[float]) -> None:
    said = refused(f"--model.method.percentiles={grid}")
    assert "numbers that fall from 1 and stay above 0.5" in said


def test_broken_yaml(refused, tmp_path) -> None:
    assert "line 1" in refused(overlay(tmp_path, "model: [open\n"))


def test_a_model_folder_that_is_not_there(refused) -> None:
    family = ["--model.family=qvlm_lightning.models.Llava", "--model.family.path=./nowhere"]
    assert "'./nowhere' has no config.json" in refused(*family)


@pytest.fixture
def model(tmp_path):
    """A copy of the embedded model to break, and the options that use it."""
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS, folder)
    options = ["--model.family=qvlm_lightning.models.Llava", f"--model.family.path={folder}"]
    return folder, options


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def lose_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).unlink()


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [cut_weights, break_config, lose_tokenizer, lose_weights])
def test_a_broken_model_folder(refused, model, damage) -> None:
    folder, options = model
    damage(folder)
    assert str(folder) in refused(*options)


def test_activations_that_are_not_finite_name_the_layer(refused, model) -> None:
    folder, options = model
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if "language_model" in n and "layers.2.mlp.down_proj" in n)
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sentence = refused(*options, written=True)
    assert "layers.3" in sentence or "layers.2" in sentence


def test_calibrating_on_what_is_evaluated(refused, monkeypatch) -> None:
    monkeypatch.setattr(TinyVQA, "calibration_samples", TinyVQA.evaluation_samples)
    assert "4 calibration samples are also evaluated, such as" in refused()


def test_an_empty_calibration_set(refused, monkeypatch) -> None:
    monkeypatch.setattr(TinyVQA, "calibration_samples", lambda _: [])
    assert "the calibration set has no samples (it is empty), but 4" in refused()


def test_a_calibration_set_that_is_too_small(refused, monkeypatch) -> None:
    whole = TinyVQA.calibration_samples
    monkeypatch.setattr(TinyVQA, "calibration_samples", lambda data: whole(data)[:3])
    assert "the calibration set has 3 samples, but 4 were asked for" in refused()


def test_an_image_that_cannot_be_decoded(refused, monkeypatch) -> None:
    whole = TinyVQA.calibration_samples

    def with_a_broken_one(data: TinyVQA) -> list:
        samples = whole(data)
        file = io.BytesIO()
        PIL.Image.new("RGB", (48, 48), "red").save(file, "PNG")
        broken = PIL.Image.open(io.BytesIO(file.getvalue()[:60]))
        return [*samples[:2], replace(samples[2], image=broken), *samples[3:]]

    monkeypatch.setattr(TinyVQA, "calibration_samples", with_a_broken_one)
    assert "cannot be decoded" in refused()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A small run that has ended, with its checkpoint."""
    root = tmp_path_factory.mktemp("finished") / "run"
    rtn = [option.replace("methods/cdm", "methods/rtn") for option in PRESET]
    train_main(["fit", *rtn, *SMALL, f"--trainer.default_root_dir={root}"])
    return root


@pytest.fixture
def again(refused, finished, run):
    """Run once more in a copy of the finished run's folder, which must stay as it was."""
    shutil.copytree(finished, run)

    def contents() -> dict[str, bytes]:
        return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}

    def repeat(*options: str, damage: bytes | None = None) -> str:
        if damage is not None:
            for path in (run / "checkpoints").iterdir():
                path.write_bytes(damage)
        before = contents()
        sentence = refused(*options, written=True)
        assert contents() == before
        return sentence

    return repeat


def test_a_run_folder_that_holds_a_run(again) -> None:
    sentence = again()
    assert "already holds a run" in sentence
    assert "--ckpt_path last" in sentence


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ("--model.scheme.language.weight_bits=4", "scheme"),
        ("--model.family.outlier_scale=4", "model"),
        ("--data.init_args.seed=5", "seed"),
    ],
)
def test_a_checkpoint_of_another_run(again, option: str, field: str) -> None:
    assert f"the checkpoint has {field}" in again("--ckpt_path=last", option)


@pytest.mark.parametrize("damage", [b"", b"junk" * 100], ids=["empty", "junk"])
def test_a_damaged_checkpoint(again, damage: bytes) -> None:
    assert "last.ckpt" in again("--ckpt_path=last", damage=damage)


def test_a_checkpoint_of_something_else(again, tmp_path) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "other.ckpt")
    assert "checkpoint" in again(f"--ckpt_path={tmp_path / 'other.ckpt'}")


def test_a_run_folder_below_a_file(refused, tmp_path) -> None:
    (tmp_path / "file").touch()
    sentence = refused(f"--trainer.default_root_dir={tmp_path / 'file' / 'run'}")
    assert str(tmp_path / "file" / "run") in sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_run_folder_that_is_read_only(refused, tmp_path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    sentence = refused(f"--trainer.default_root_dir={tmp_path / 'locked' / 'run'}")
    assert str(tmp_path / "locked") in sentence


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk(refused, monkeypatch, code: int) -> None:
    def fail(file: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    assert "disk" in refused(written=True) or code == errno.EROFS


def test_a_checkpoint_from_elsewhere_over_a_run(again, finished, tmp_path) -> None:
    other = tmp_path / "other.ckpt"
    shutil.copy(finished / "checkpoints" / "last.ckpt", other)
    sentence = again(f"--ckpt_path={other}")
    assert "is not of the run" in sentence
    assert "--ckpt_path last" in sentence


def test_a_trial_takes_seconds_and_writes_nothing(run, monkeypatch, tmp_path) -> None:
    """``fast_dev_run`` shows that a run works, on two pairs whatever the configuration says."""
    monkeypatch.chdir(tmp_path)
    options = ["--data.calibration_pairs=64", "--data.batch_size=8", "--trainer.fast_dev_run=true"]
    program = train_main(["fit", *PRESET, f"--trainer.default_root_dir={run}", *options])
    assert len(program.datamodule.calibration) == 2
    assert program.model.state.passes, "a block was decided"
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_bar_is_possible(run) -> None:
    options = ["--trainer.enable_progress_bar=false", "--trainer.fast_dev_run=true"]
    program = train_main(["fit", *PRESET, *SMALL, f"--trainer.default_root_dir={run}", *options])
    assert program.trainer.progress_bar_callback is None
