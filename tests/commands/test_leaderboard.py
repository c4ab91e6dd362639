"""Plans of several tables: what they share, how long they take, what is refused; a small run."""

import csv
import json
import mmap
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from qvlm_lightning import peak_memory
from qvlm_lightning.commands import leaderboard
from qvlm_lightning.commands._leaderboard_estimate import PAIRS, QUESTION, ROUGH, START, estimated
from qvlm_lightning.commands._leaderboard_plan import parse_leaderboard, table_plans
from qvlm_lightning.commands._leaderboard_run import refuse_impossible
from qvlm_lightning.commands._provenance import commit
from qvlm_lightning.commands._table_plan import planned_variants
from qvlm_lightning.errors import InputError
from tests.commands.test_table import calibrations, evaluated  # noqa: F401

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(p.stem for p in (CONFIGS / "leaderboard").glob("*.yaml"))
TOKEN = {"method": "rtn", "scheme": "w4a4", "activation_mode": "dynamic_token"}


def options(root: Path, *tables, **changes) -> list[str]:
    plan = {
        "tables": list(tables),
        "questions": 8,
        "pairs": 4,
        "search_pairs": 2,
        "root": str(root),
        "configs": str(CONFIGS),
    }
    given = (plan | changes).items()
    return [f"--{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in given]


def plans(root: Path, *tables, **changes):
    return table_plans(parse_leaderboard(options(root, *tables, **changes)))


def finish(
    root: Path,
    method: str,
    seconds: float,
    questions: int = 0,
    scheme: str = "w4a4",
    processes: int = 1,
) -> None:
    """Leave what a finished calibration, and perhaps its evaluation, leaves on the disk."""
    folder = root / "tiny-k1" / "seed0" / f"{method}-{scheme}"
    (folder / "artifact").mkdir(parents=True)
    (folder / "calibration.json").write_text(
        json.dumps({"seconds": seconds, "processes": processes})
    )
    about = {"scheme_name": scheme, "activation_mode": "static_tensor"}
    (folder / "artifact" / "quantization.json").write_text(json.dumps(about))
    if questions:
        answers = root / "tiny-k1" / "predictions"
        answers.mkdir(exist_ok=True)
        told = json.dumps({"n": questions, "seconds": 2.0 * questions})
        (answers / f"{method}-{scheme}-static_tensor-k1-s0.json").write_text(told)


def test_tables_have_in_common_what_they_do_not_say(tmp_path):
    (tmp_path / "table.yaml").write_text(
        yaml.safe_dump({"variants": ["mse w4a4"], "steps": [["a", "b"]], "questions": 30})
    )
    first, second, third = plans(
        tmp_path / "run",
        {"variants": ["rtn w4a4"], "seeds": [0, 1]},
        str(tmp_path / "table.yaml"),
        {"file": str(tmp_path / "table.yaml"), "seeds": [2], "questions": 40},
        split="development",
    )
    assert (first.questions, first.seeds, first.split) == (8, [0, 1], "development")
    assert (second.questions, second.seeds, second.pairs) == (30, [0], 4)
    assert (third.questions, third.seeds, third.variants) == (40, [2], ["mse w4a4"])
    assert second.steps == []
    assert {t.root for t in (first, second, third)} == {str(tmp_path / "run")}


@pytest.mark.parametrize(
    ("tables", "changes", "sentence"),
    [
        ([], {}, r"tables is \[\]; give one table"),
        (
            [{"rows": []}],
            {},
            "table 1: the key 'rows' is not known; allowed are configs, fidelity, file, headline,",
        ),
        (["nowhere.yaml"], {}, "table 1: there is no file 'nowhere.yaml'"),
        ([{"variants": 3}], {}, "table 1: variants: expected list, got 3"),
        ([{"variants": ["rtn"]}], {}, "table 1: variant 'rtn' is not a method and a scheme"),
        ([{"variants": ["rtn w4a4"], "pairs": 0}], {}, "table 1: pairs 0 is not allowed"),
        ([{"variants": ["magic w4a4"]}], {}, r"table 1: there is no '.*magic\.yaml'"),
        ([{"variants": ["rtn w4a4"]}], {"ours": ["x"]}, "ours has 'x'; allowed are the rows rtn"),
        ([{"variants": ["rtn w4a4"]}], {"max_hours": 0}, "max_hours 0.0 is not allowed"),
        (
            [
                {"variants": ["rtn w8a8", "rtn w4a4"]},
                {"variants": [TOKEN | {"activation_mode": "static_tensor"}]},
            ],
            {},
            "tables 1 and 2 both have w4a4 rtn static_tensor, seed 0; leave it out of one",
        ),
    ],
)
def test_what_is_wrong_with_a_plan_is_one_sentence(tmp_path, tables, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        plans(tmp_path / "run", *tables, **changes)


def test_a_row_that_was_made_beside_others_counts_its_share(tmp_path):
    finish(tmp_path, "rtn", 100.0, questions=8, processes=2)
    (table,) = plans(tmp_path, {"variants": ["rtn w4a4"], "seeds": [0, 1]}, processes=2)
    assert table.processes == 2
    found = estimated([table])
    assert found.kinds["calibrate rtn"].seconds == 50
    assert found.kinds["evaluate"].seconds == pytest.approx(8 * 2.0 / 2)


def test_the_estimate_is_the_sum_of_what_is_left(tmp_path):
    table = {"variants": ["rtn w4a4", "gptq w4a4"], "seeds": [0, 1]}
    found = estimated(plans(tmp_path, table, pairs=32, questions=100))
    assert (found.rows, found.calibrated, found.finished) == (4, 0, 0)
    expected = sum(2 * (START + (ROUGH[m] - START) * 32 / PAIRS) for m in ("rtn", "gptq"))
    assert found.seconds == pytest.approx(expected + (4 + 2) * 100 * QUESTION)
    lines = list(found.lines())
    assert lines[0] == "4 rows, 0 of them calibrated, 0 also evaluated"
    assert "~" in lines[1]
    assert lines[-1].startswith("an estimate: about ")


def test_finished_rows_say_how_long_others_take(tmp_path):
    finish(tmp_path, "rtn", 100.0, questions=8)
    finish(tmp_path, "gptq", 50.0, questions=7)
    finish(tmp_path, "mse", 40.0, scheme="w8a8")
    table = {"variants": ["rtn w4a4", "gptq w4a4", "mse w4a4", "mse w8a8"], "seeds": [0, 1]}
    found = estimated(plans(tmp_path, table))
    # another number of questions, or none, are answered again
    assert (found.rows, found.calibrated, found.finished) == (8, 3, 1)
    # seed 1 of all, and mse w4a4 of seed 0; another scheme of a method is better than a guess
    assert found.kinds["calibrate rtn"].seconds == 100
    assert found.kinds["calibrate gptq"].seconds == 50
    assert (found.kinds["calibrate mse"].steps, found.kinds["calibrate mse"].seconds) == (3, 120)
    assert found.kinds["evaluate"].steps == 7
    # two seconds a question, here
    assert found.kinds["evaluate"].seconds == pytest.approx(7 * 8 * 2.0)
    assert found.kinds["full precision"].steps == 2
    assert not any("~" in line for line in list(found.lines())[1:-1])


def test_a_full_precision_that_tables_share_counts_once(tmp_path):
    tables = [{"variants": ["rtn w4a4"]}, {"variants": ["rtn w8a8"]}]
    tables += [{"variants": ["rtn w4a4"], "sink_scales": [9.0]}]
    found = estimated(plans(tmp_path, *tables))
    assert found.kinds["full precision"].steps == 2 * 2
    assert found.kinds["evaluate"].steps == 3


def test_of_another_model_nothing_is_known(tmp_path):
    found = estimated(plans(tmp_path, {"variants": ["rtn w4a4"]}, model="joined"))
    assert found.seconds == 0
    assert "not known" in "".join(found.lines())
    assert "an estimate: at least " in list(found.lines())[-1]


def test_a_plan_that_takes_too_long_is_refused(tmp_path, capsys):
    given = options(tmp_path / "run", {"variants": ["rtn w4a4"]}, questions=10**7)
    with pytest.raises(InputError, match=r"the estimate is 50:00:0\d, max_hours is 4; give fewer"):
        leaderboard.main(given)
    assert not (tmp_path / "run").exists()
    assert leaderboard.main([*given, "--estimate_only=true"]) == 0
    assert capsys.readouterr().out.count("an estimate: about 50:00:0") == 2


def test_the_plan_of_the_document_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    text = (CONFIGS.parent / "docs" / "evaluation.md").read_text()
    (plan,) = re.findall(r"^```yaml\n(ours:.*?)^```", text, re.S | re.M)
    (tmp_path / "plan.yaml").write_text(plan)
    first, second = table_plans(parse_leaderboard([f"--config={tmp_path / 'plan.yaml'}"]))
    assert (first.seeds, first.split, first.root) == (
        [0, 1, 2],
        "development",
        "runs/leaderboard-mine",
    )
    assert (second.questions, second.root) == (500, "runs/gptq")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_allowed_row_by_row_and_within_its_time(name, tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    file = CONFIGS / "leaderboard" / f"{name}.yaml"
    plan = parse_leaderboard([f"--config={file}", f"--root={tmp_path}"])
    tables = table_plans(plan)
    refuse_impossible(tables)
    hours = {"quick": 1 / 3}.get(name, plan.max_hours)
    assert estimated(tables).seconds < 3600 * hours
    names = {v.name for table in tables for v in planned_variants(table)}
    weights_only = name in ("rivals", "weights")  # qvlm_plus is for quantized activations
    assert {"rtn", "gptq", "qvlm_plus_fast"} | (set() if weights_only else {"qvlm_plus"}) <= names


def test_the_full_leaderboard_has_every_method(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    plan = parse_leaderboard([f"--config={CONFIGS / 'leaderboard' / 'full.yaml'}"])
    rows = [(t, v) for t in table_plans(plan) for v in planned_variants(t)]
    methods = {path.stem for path in (CONFIGS / "methods").glob("*.yaml")}
    assert {v.method for _, v in rows} == methods
    seeds = {(v.scheme, v.mode): t.seeds for t, v in rows if t.outlier_scales == t.sink_scales}
    for scheme in ("w4a4", "w4a16"):
        assert seeds[scheme, ""] == [0, 1, 2]
    assert seeds["w4a4", "dynamic_token"] == [0, 1, 2]
    assert {"w8a8", "w6a6", "w4a8", "w4a16_language"} <= {scheme for scheme, _ in seeds}


def test_a_method_that_can_do_nothing_is_refused_before_work(tmp_path):
    tables = plans(tmp_path, {"variants": ["rtn w4a16"]}, {"variants": ["smoothquant w4a16"]})
    with pytest.raises(
        InputError, match="table 2, row 'smoothquant w4a16': method smoothquant makes"
    ):
        refuse_impossible(tables)
    own = {"method": "smoothquant", "scheme": "w4a16", "options": ["--x=1"]}
    with pytest.raises(InputError, match="table 1, row 'smoothquant w4a16'"):
        refuse_impossible(plans(tmp_path, {"variants": [own]}))
    changed = own | {"options": ["--model.scheme.language.activation_bits=8"]}
    refuse_impossible(plans(tmp_path, {"variants": [changed]}))


def test_tables_of_one_folder_must_agree_on_their_pairs(calibrations, tmp_path):  # noqa: F811
    tables = [{"variants": ["rtn w4a4"]}, {"variants": ["mse w4a4"], "pairs": 5}]
    with pytest.raises(InputError, match="holds runs with pairs 4, the plan has 5; choose another"):
        leaderboard.main(options(tmp_path / "run", *tables))
    assert not calibrations.calls
    assert not (tmp_path / "run").exists()


def test_a_leaderboard_of_two_tables_and_again(calibrations, evaluated, tmp_path, capsys):  # noqa: F811
    root = tmp_path / "run"
    tables = [{"variants": ["rtn w4a4", "mse w4a4_g128"]}]
    tables += [{"variants": ["rtn w8a8"], "seeds": [3]}]
    given = options(root, *tables, ours=["mse"], questions=12, page=str(tmp_path / "page.md"))
    assert leaderboard.main(given) == 0
    assert len(calibrations.calls) == 3
    assert len(evaluated) == 2 + 3, "full precision once, plain and with shuffled pictures"
    told = capsys.readouterr()
    assert told.out.startswith("3 rows, 0 of them calibrated")
    assert re.search(r"table 2 of 2, about 0:0\d left of all", told.err)
    text = (root / "leaderboard.md").read_text()
    assert (tmp_path / "page.md").read_text() == text
    assert "- command: `python -m qvlm_lightning leaderboard '--tables=[" in text
    assert "### W4A4, activations static_tensor\n" in text
    assert "### W8A8, activations static_tensor\n" in text
    assert "calibration, s" in text
    lines = list(csv.DictReader((root / "leaderboard.csv").open()))
    rows = {(line["scheme"], line["method"]): line for line in lines}
    assert set(rows) == {("w4a4", "rtn"), ("w4a4", "mse-g128"), ("w8a8", "rtn")}
    assert (rows["w4a4", "mse-g128"]["rival"], rows["w4a4", "mse-g128"]["ours"]) == ("rtn", "True")
    # the stand-in's artifacts of one seed are equal
    assert float(rows["w4a4", "mse-g128"]["kl_minus_rtn"]) == 0
    assert "none [" in text
    stored = json.loads((root / "results.json").read_text())["rows"]
    overall = {
        (r["scheme"], r["variant"], r["metric"]): r["value"]
        for r in stored
        if r["task"] == "overall"
    }
    for (scheme, method), line in rows.items():
        assert float(line["kl"]) == pytest.approx(overall[scheme, method, "kl"])
        assert float(line["accuracy"]) == pytest.approx(overall[scheme, method, "accuracy"])
        seconds = overall[scheme, method, "calibration_seconds"]
        assert float(line["calibration_seconds"]) == seconds
        peak = overall.get((scheme, method, "peak_bytes"))
        assert line["peak_bytes"] == "" if peak is None else float(line["peak_bytes"]) == peak
    assert "W8A8, activations static_tensor" in (root / "leaderboard.html").read_text()
    evaluated.clear()
    assert leaderboard.main(given) == 0
    assert (len(calibrations.calls), evaluated) == (3, [])
    assert "3 rows, 3 of them calibrated, 3 also evaluated" in capsys.readouterr().out


def test_the_peak_is_that_of_the_stretch():
    if not peak_memory.reset_peak():
        pytest.skip("the system does not set the peak back")
    before = peak_memory.peak_bytes()
    block = mmap.mmap(-1, 64 << 20)  # an allocator may keep what it gave
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    during = peak_memory.peak_bytes()
    assert before is not None
    assert during - before == pytest.approx(len(block), rel=0.3)
    block.close()
    assert peak_memory.reset_peak()
    assert peak_memory.peak_bytes() < during - (32 << 20)


def test_the_commit_is_that_of_the_folder(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    known = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    assert known.startswith(commit(tmp_path))
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path).endswith("+")
    assert known.startswith(commit(tmp_path)[:-1])
