"""The same questions from a release and from parquet files in the columns of the hub's copies."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from PIL import Image

from qvlm_lightning.models import Tiny
from qvlm_lightning.tasks import Question, Source, TaskData
from qvlm_lightning.tasks.find import find_task

FAMILY = Tiny()
SCIENCEQA = ("question", "choices", "answer", "hint", "task", "grade", "subject", "topic",
             "category", "skill")  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")  # inside of a data folder it would be data
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, cache)


def store(rows: list[dict], folder: Path, split: str) -> str:
    table = Dataset.from_list(rows)
    table = table.cast_column("image", datasets.Image())
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def data(name: str, path: str, split: str, **options) -> TaskData:
    return TaskData(FAMILY, find_task(name)(), Source(path, split), **options)


def questions(name: str, path: str, split: str) -> list[Question]:
    made = data(name, path, split)
    return list(made._questions(made.evaluation_source))


def test_scienceqa(test_data, tmp_path):
    release = test_data / "scienceqa"
    expected = data("scienceqa", str(release), "train", images="only").evaluation
    problems = json.loads((release / "problems_subset.json").read_text())
    rows = [
        {key: problems[s.id][key] for key in SCIENCEQA} | {"image": s.image.open().copy()}
        for s in expected
    ]
    text = next(p for p in problems.values() if p["split"] == "train" and not p["image"])
    rows.append({key: text[key] for key in SCIENCEQA} | {"image": None})
    path = store(rows, tmp_path, "train")
    *found, last = data("scienceqa", path, "train").evaluation
    assert len(found) == 110
    for one, other in zip(found, expected, strict=True):
        assert (one.question, one.choices, one.answer) == (
            (other.question, other.choices, other.answer)
        )
        assert one.target.groups == other.target.groups
        assert one.image.open().tobytes() == other.image.open().tobytes()
    assert last.image is None
    assert "context/IMG" not in last.target.groups


def test_vqav2(test_data, tmp_path):
    release = test_data / "vqav2_subset"
    expected = questions("vqav2", str(release), "valid")[:200]
    read = [
        json.loads(gzip.decompress((release / f"valid_{kind}.json.gz").read_bytes()))[kind]
        for kind in ("annotations", "questions")
    ]
    asked = {q["question_id"]: q["question"] for q in read[1]}
    rows = [
        a | {"question": asked[a["question_id"]], "image": Image.new("RGB", (8, 8), (i, 0, 0))}
        for i, a in enumerate(read[0][:200])
    ]
    found = questions("vqav2", store(rows, tmp_path, "validation"), "validation")
    assert [(q.id, q.target, q.row) for q in found] == [(q.id, q.target, q.row) for q in expected]


def test_vizwiz(test_data, tmp_path):
    release = test_data / "vizwiz_val2019"
    expected = questions("vizwiz", str(release), "val")[:200]
    rows = [
        {
            "question_id": r["image"],
            "question": r["question"],
            "answers": [a["answer"] for a in r["answers"]],
            "category": r["answer_type"],
            "image": Image.new("RGB", (8, 8), (i, 0, 0)),
        }
        for i, r in enumerate(json.loads((release / "annotations.json").read_text())[:200])
    ]
    found = questions("vizwiz", store(rows, tmp_path, "val"), "val")
    assert [(q.id, q.target.answers, q.row) for q in found] == [
        (q.id, q.target.answers, q.row) for q in expected
    ]
    kinds = [[g for g in q.target.groups if g.startswith("answer_type/")] for q in expected]
    assert [list(q.target.groups) for q in found] == kinds
