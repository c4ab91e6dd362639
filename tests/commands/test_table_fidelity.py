"""Tables whose rows also say how far a text is from full precision's."""

import json
from pathlib import Path

import pytest
from PIL import Image

from qvlm_lightning.commands import _table_run as table_run
from qvlm_lightning.commands import table
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.fidelity import FidelityMeter
from qvlm_lightning.results.stress import Stress
from tests.commands.test_table import calibrations, evaluated, options, rows_of  # noqa: F401

METRICS = ("text_kl_prompts", "same_tokens", "same_answers", "text_kl_passage", "perplexity")


@pytest.fixture
def fidelity(tmp_path) -> dict:
    """A plan of three photographs."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for place, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (60, 40), colour).save(folder / f"{place}.png")
    passage = tmp_path / "passage.txt"
    passage.write_text("what color is the large circle ? it is red .")
    return {
        "photographs": [str(folder)],
        "prompts": ["what is this ?", "how many circles ?"],
        "passage": str(passage),
        "count": 3,
        "max_new_tokens": 4,
        "batch_size": 2,
    }


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Names of the variants whose fidelity was measured."""
    seen: list[str] = []
    original = FidelityMeter.measure

    def spy(self, model, name="fidelity"):
        seen.append(name)
        return original(self, model, name)

    monkeypatch.setattr(FidelityMeter, "measure", spy)
    return seen


def test_rows_say_how_far_a_text_is(calibrations, evaluated, measured, fidelity, tmp_path, capsys):  # noqa: F811
    root = tmp_path / "run"
    table.main(options(root, fidelity=fidelity))
    assert measured == [f"{m}-w4a4-static_tensor-k1-s0" for m in ("rtn", "qvlm")]
    for method in ("rtn", "qvlm"):
        rows = {row["metric"]: row for row in rows_of(root / "results.json", method=method)}
        for metric in METRICS:
            assert rows[metric]["task"] == "overall"
        assert rows["text_kl_prompts"]["value"] > 0
        assert rows["text_kl_prompts"]["n"] == 3
        assert rows["calibration_seconds"]["value"] >= 0
    (full,) = rows_of(root / "results.json", method="fp", metric="perplexity")
    assert full["value"] > 1
    assert not rows_of(root / "results.json", method="fp", metric="text_kl_prompts")
    written = (root / "table.md").read_text()
    assert "### Text fidelity" in written
    assert "Text fidelity" in capsys.readouterr().out


def test_fidelity_is_measured_once_per_artifact(
    calibrations,  # noqa: F811
    evaluated,  # noqa: F811
    measured,
    fidelity,
    tmp_path,
    capsys,
):
    root = tmp_path / "run"
    table.main(options(root, fidelity=fidelity, variants=["rtn w4a4"]))
    before = (root / "results.json").read_bytes()
    measured.clear()
    table.main(options(root, fidelity=fidelity, variants=["rtn w4a4"]))
    assert measured == []
    assert (root / "results.json").read_bytes() == before
    assert capsys.readouterr().err.count("already there") == 3
    artifact = next(root.rglob("artifact")) / "quantization.json"
    artifact.write_text(artifact.read_text() + "\n")
    table.main(options(root, fidelity=fidelity, variants=["rtn w4a4"]))
    assert len(measured) == 1
    fidelity["prompts"] = ["how many ?"]
    table.main(options(root, fidelity=fidelity, variants=["rtn w4a4"]))
    assert len(measured) == 2


def test_a_row_that_lacks_fidelity_alone_is_no_skipped_step(
    calibrations,  # noqa: F811
    measured,
    fidelity,
    tmp_path,
    capsys,
):
    root = tmp_path / "run"
    table.main(options(root, variants=["rtn w4a4"]))
    capsys.readouterr()
    table.main(options(root, fidelity=fidelity, variants=["rtn w4a4"]))
    assert len(measured) == 1
    assert capsys.readouterr().err.count("already there") == 1, "the calibration alone"


def test_another_number_of_questions_has_results_of_its_own(
    calibrations,  # noqa: F811
    evaluated,  # noqa: F811
    measured,
    fidelity,
    tmp_path,
):
    root = tmp_path / "run"
    table.main(options(root, fidelity=fidelity))
    evaluated.clear()
    measured.clear()
    more = {"questions": 16, "results": "more", "variants": ["rtn w4a4"]}
    table.main(options(root, fidelity=fidelity, **more))
    assert len(calibrations.calls) == 2, "calibrations are shared"
    assert measured == [], "what does not depend on the questions is shared"
    assert len(evaluated) == 3
    counts = {row["n"] for row in rows_of(root / "more" / "results.json", metric="accuracy")}
    assert max(counts) == 16
    assert max(r["n"] for r in rows_of(root / "results.json", metric="accuracy")) == 12
    assert (root / "more" / "table.png").is_file()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"count": 4}, "4 photographs were asked for; .* holds 3"),
        ({"passage": "nowhere.txt"}, "passage 'nowhere.txt' cannot be read; give a text file"),
    ],
)
def test_what_is_missing_ends_before_work(calibrations, fidelity, tmp_path, changes, sentence):  # noqa: F811
    with pytest.raises(InputError, match=sentence):
        table.main(options(tmp_path / "run", fidelity=fidelity | changes))
    assert not calibrations.calls
    assert not (tmp_path / "run").exists()


def test_a_photograph_that_cannot_be_read_ends_before_work(calibrations, fidelity, tmp_path):  # noqa: F811
    (Path(fidelity["photographs"][0]) / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png' cannot be decoded"):
        table.main(options(tmp_path / "run", fidelity=fidelity))
    assert not calibrations.calls


def test_rows_of_one_method_in_several_modes(calibrations, evaluated, tmp_path):  # noqa: F811
    modes = ("static_tensor", "dynamic_token")
    rows = [{"method": "rtn", "scheme": "w4a4", "activation_mode": mode} for mode in modes]
    table.main(options(tmp_path, variants=rows))
    for call, mode in zip(calibrations.calls, modes, strict=True):
        assert f"--model.init_args.scheme.activation_mode={mode}" in call
        folder = tmp_path / "tiny-k1" / "seed0" / f"rtn-w4a4-{mode}"
        assert f"--trainer.default_root_dir={folder}" in call


def test_a_mode_that_does_not_exist_is_refused(calibrations, tmp_path):  # noqa: F811
    row = {"method": "rtn", "scheme": "w4a4", "activation_mode": "static"}
    with pytest.raises(InputError, match="'static'; allowed are static_tensor, static_channel, dy"):
        table.main(options(tmp_path, variants=[row]))


def test_sources_reach_calibration_and_evaluation(calibrations, tmp_path):  # noqa: F811
    batch = "--data.init_args.evaluation_batch_size=5"
    run = table_run.TableRun(table.parse_plan(options(tmp_path, sources=[batch])))
    assert run.maker.program(Stress()).datamodule.evaluation_batch_size == 5
    run.run()
    assert all(batch in call for call in calibrations.calls)
    identity = json.loads((tmp_path / "plan.json").read_text())
    assert batch not in json.dumps(identity), "data that lie elsewhere are the same"
