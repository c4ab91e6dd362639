"""`compare`, from stored answers to the three files."""

import json
from pathlib import Path

import pytest

from qvlm_lightning.__main__ import main
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.evaluation.cli import EvaluationCLI
from qvlm_lightning.models import Tiny
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.variant import Variant

CONFIGS = Path(__file__).parents[2] / "configs"
COUNT = 40


@pytest.fixture(scope="module")
def samples():
    return TinyVQA(Tiny(), evaluation_count=COUNT).evaluation


@pytest.fixture
def run(tmp_path, samples) -> Path:
    """A run folder whose quantized model answers every fourth question with nonsense."""
    folder = tmp_path / "run"
    data = TinyVQA(Tiny(), evaluation_count=COUNT)
    quantized = Variant("tiny", "rtn", "w4a4", "static_tensor", 1.0, 0)
    for variant, every in ((Variant("tiny"), 0), (quantized, 4)):
        texts = [
            "nonsense" if every and i % every == 0 else s.answer for i, s in enumerate(samples)
        ]
        judged = [data.judge(s, text) for s, text in zip(samples, texts, strict=True)]
        about = {"source": variant.name, "base": "weights", "seconds": 1.0}
        about |= {"benchmark": data.benchmark, "mode": data.mode}
        Predictions.of(samples, texts, judged, variant=variant, **about).save(
            folder / "predictions"
        )
    return folder


@pytest.fixture
def compare(run, tmp_path):
    def go(*argv: str) -> Path:
        out = tmp_path / "out"
        assert main(["compare", *(argv or (str(run),)), f"--out={out}"]) == 0
        return out

    return go


def test_three_files_and_a_table(compare, run, capsys):
    out = compare()
    rows = json.loads((out / "compare.json").read_text())
    (difference,) = [r for r in rows if (r["metric"], r["group"]) == ("difference", "overall")]
    assert (difference["value"], difference["won"], difference["lost"]) == (-25.0, 0, 10)
    assert (difference["model"], difference["reference"]) == ("W4A4 rtn", "full precision")
    assert (difference["benchmark"], difference["mode"]) == ("tinyvqa", "exact")
    assert difference["p_value"] == pytest.approx(2**-10)
    markdown = (out / "compare.md").read_text()
    assert "| W4A4 rtn | 75.0 [" in markdown
    assert "| -25.0 [" in markdown
    html = (out / "compare.html").read_text()
    assert "W4A4 rtn: 6 of the questions it lost against full precision" in html
    assert "nonsense" in html
    printed = capsys.readouterr().out
    assert "full precision" in printed
    assert "-25.0" in printed
    assert f"are in {out}" in printed


def test_pictures_come_from_the_data_of_the_evaluation(compare, run, samples, tmp_path):
    lost = [s for i, s in enumerate(samples) if i % 4 == 0]
    pictured = min(6, sum(s.image is not None for s in lost))
    assert "data:image/png" not in (compare() / "compare.html").read_text()
    config = tmp_path / "eval.yaml"
    config.write_text((CONFIGS / "eval" / "tiny.yaml").read_text().replace("2000", str(COUNT)))
    html = (compare(str(run), f"--data={config}") / "compare.html").read_text()
    assert 0 < html.count('<img class="small" src="data:image/png') <= pictured
    (run / "eval.yaml").write_text(config.read_text())  # where eval.py leaves it
    assert (compare() / "compare.html").read_text() == html
    single = [str(path)[:-5] for path in sorted((run / "predictions").glob("*.json"))]
    assert (compare(*single) / "compare.html").read_text() == html
    assert "nonsense" not in (compare(str(run), "--examples=0") / "compare.html").read_text()


def test_the_configuration_that_is_left_opens_the_same_data(tmp_path, samples):
    options = [
        f"--config={CONFIGS / 'eval' / 'tiny.yaml'}",
        f"--data.init_args.evaluation_count={COUNT}",
        "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    EvaluationCLI(options).save()
    again = EvaluationCLI([f"--config={tmp_path / 'eval.yaml'}"]).datamodule
    assert [s.id for s in again.evaluation] == [s.id for s in samples]


def test_a_run_whose_data_is_gone_is_compared_without_pictures(compare, run, capsys):
    (run / "eval.yaml").write_text("data: {class_path: gone.Data}\n")
    compare()
    assert f"no pictures of {run}: its data cannot be opened" in capsys.readouterr().err


def test_the_reference_can_be_chosen(compare, run):
    rows = json.loads((compare(str(run), "--reference=W4A4 rtn") / "compare.json").read_text())
    (difference,) = [r for r in rows if (r["metric"], r["group"]) == ("difference", "overall")]
    assert (difference["value"], difference["won"]) == (25.0, 10)


def test_long_tables_stay_off_the_terminal(compare, run, capsys):
    compare(str(run), "--groups=3")
    assert "score per group, %: 10 rows, in compare.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "'nowhere' does not exist; give a run folder of eval.py"),
        (["{run}", "--reference=best"], "reference is 'best'; allowed are 'full precision'"),
        (["{run}", "--examples=-1"], "examples is -1; allowed are 0 and more"),
        (["{run}", "--groups=many"], "argument --groups: invalid int value: 'many'"),
        ([], "the following arguments are required: RUN"),
        (["{run}", "--out={run}/predictions/fp-k1.json"], "fp-k1.json', a file; allowed is a"),
        (["{run}", "--out={run}/predictions/fp-k1.json/x"], "a file stands where a folder"),
    ],
)
def test_mistakes_are_one_sentence(run, argv, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", *(text.format(run=run) for text in argv)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
