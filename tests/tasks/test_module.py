"""A benchmark of a few colours, in the layout of a release and in that of the hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import datasets
import pytest
from datasets import Dataset
from PIL import Image

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.models import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.tasks import Question, Source, Task, TaskData

FAMILY = Llava(str(WEIGHTS))
NAMES = ("red", "green", "blue", "yellow", "purple", "orange")


def ask(row) -> str:
    return f"{row['question']} in one word"


class Colors(Task):
    """What color is it? The last of every split is a question of knowledge, without an image."""

    name = "colors"
    modes = ("exact", "loose")
    prompts: ClassVar[Mapping] = {"ask": ask}
    splits = ("test", "train")
    layout = "a folder with test.json and images/"
    max_new_tokens = 3
    stop = ("\n",)

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        rows = json.loads((path / f"{self.split(split)}.json").read_text())
        files = {r["id"]: path / "images" / r["file"] for r in rows if r["file"]}
        return [self.question(r, files.get(r["id"])) for r in rows]

    def from_hub(self, row) -> Question:
        return self.question(row, row["image"])

    def question(self, row, image) -> Question:
        given = {"question": row["question"], "image": row["file"]}
        kind = "seen" if row["file"] else "known"
        target = Target((row["answer"], "other", row["answer"]), groups=(f"kind/{kind}", "all"))
        return Question(row["id"], target, given, image)

    def judge(self, text, target) -> Judgement:
        return Judgement(WHOLE * (text in target.answers), text or None)


def rows(split: str) -> list[dict]:
    """A color per question; every second question shares its image with the one before."""
    made = [
        {
            "id": f"{split}{i}",
            "question": f"what color is thing {i // 2 * 2} of the {split}?",
            "answer": NAMES[i // 2 * 2],
            "file": f"{split}-{i // 2}.png",
        }
        for i in range(6)
    ]
    return [*made, {"id": f"{split}-why", "question": "why?", "answer": "so", "file": ""}]


def picture(split: str, row: Mapping) -> Image.Image:
    return Image.new("RGB", (24, 24 if split == "test" else 32), row["answer"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")  # inside of a data folder it would be data
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, cache)


@pytest.fixture
def release(tmp_path) -> Path:
    root = tmp_path / "colors"
    (root / "images").mkdir(parents=True)
    for split in ("test", "train"):
        (root / f"{split}.json").write_text(json.dumps(rows(split)))
        for row in rows(split)[:-1]:
            picture(split, row).save(root / "images" / row["file"])
    return root


@pytest.fixture
def copy(tmp_path) -> Path:
    root = tmp_path / "copy"
    root.mkdir()
    for split in ("test", "train"):
        columns = {name: [row[name] for row in rows(split)] for name in rows(split)[0]}
        columns["image"] = [picture(split, r) if r["file"] else None for r in rows(split)]
        features = datasets.Dataset.from_dict({k: columns[k] for k in rows(split)[0]}).features
        features["image"] = datasets.Image()
        Dataset.from_dict(columns, features).to_parquet(root / f"{split}-0-of-1.parquet")
    return root


@pytest.fixture(params=["release", "copy", "stream"])
def given(request) -> dict:
    """Arguments of a source, for every layout."""
    name = "copy" if request.param == "stream" else request.param
    path = str(request.getfixturevalue(name))
    return {"path": path, "streaming": request.param == "stream"}


def data(evaluation=None, calibration=None, **options) -> TaskData:
    sizes = {"calibration_pairs": 3, "search_pairs": 2, "batch_size": 2} | options
    sources = {"evaluation": evaluation, "calibration": calibration}
    return TaskData(FAMILY, Colors(), **{k: v and Source(**v) for k, v in sources.items()}, **sizes)


def test_questions_of_every_layout(given):
    samples = data(given).evaluation
    assert [s.id for s in samples] == [*(f"test{i}" for i in range(6)), "test-why"]
    assert samples[2].question == "what color is thing 2 of the test? in one word"
    assert [s.family for s in samples] == ["kind/seen"] * 6 + ["kind/known"]
    assert [s.answer for s in samples[4:]] == ["purple", "purple", "so"]
    assert samples[0].image is samples[1].image
    assert samples[2].image.open().getpixel((0, 0)) == (0, 0, 255)
    assert samples[6].image is None


def test_the_first_questions_are_evaluated(given):
    assert data(given, evaluation_count=3).evaluation_ids == ["test0", "test1", "test2"]


@pytest.mark.parametrize("layout", ["release", "copy"])
def test_the_seed_draws_pairs_of_the_train_split(layout, request):
    given = {"path": str(request.getfixturevalue(layout))}
    draws = [data(given, given, seed=seed).calibration_ids for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len(set(map(tuple, draws))) > 1
    assert all(name.startswith("train") and name != "train-why" for d in draws for name in d)


@pytest.mark.parametrize("layout", ["release", "copy"])
def test_calibration_runs_through_setup(layout, request):
    given = {"path": str(request.getfixturevalue(layout))}
    made = data(given, given)
    made.setup("fit")
    assert [len(b["sample_index"]) for b in made.calibration_batches()] == [2, 1]


@pytest.mark.slow  # a shuffled stream of datasets 5 takes five seconds to end
def test_pairs_are_drawn_from_a_stream(copy):
    given = {"path": str(copy), "streaming": True}
    made = data(given, given)
    assert made.calibration_ids == [s.id for s in made.blind_samples()]


@pytest.mark.parametrize("layout", ["release", "copy"])
def test_a_guesser_learns_from_the_whole_train_split(layout, request):
    given = {"path": str(request.getfixturevalue(layout))}
    known = data(given, given).blind_samples()
    assert [s.answer for s in known][4:] == ["purple", "purple", "so"]
    assert all(s.image is None for s in known)
    assert data(given).blind_samples() == []


def test_the_task_scores(release):
    made = data({"path": str(release)})
    assert (made.benchmark, made.mode, made.max_new_tokens, made.stop) == (
        ("colors", "exact", 3, ("\n",))
    )
    samples = made.evaluation
    assert made.judge(samples[0], "red") == Judgement(WHOLE, "red")
    scores = made.scores(samples, ["red"] * 6 + ["so"])
    assert scores["kind/known"] == 100
    assert scores["overall"] == pytest.approx(100 * 3 / 7)


def lose(release: Path, *names: str) -> None:
    for name in names:
        (release / "images" / name).unlink()


def test_a_missing_image_is_named(release):
    lose(release, "test-1.png")
    wanted = r"2 of 7 questions in '.*' split 'test' have no image there, such as 'test2'; needed"
    with pytest.raises(InputError, match=wanted):
        _ = data({"path": str(release)}).evaluation


def test_questions_without_their_image_can_be_left_out(release):
    lose(release, "test-1.png")
    found = {k: data({"path": str(release)}, images=k).evaluation_ids for k in ("present", "only")}
    assert found["only"] == ["test0", "test1", "test4", "test5"]
    assert found["present"] == [*found["only"], "test-why"]


def test_not_one_image(release):
    lose(release, *(f"test-{i}.png" for i in range(3)))
    with pytest.raises(InputError, match=r"6 of 7 questions .* have no image there"):
        _ = data({"path": str(release)}, images="only").evaluation


def test_too_few_images_to_calibrate_on(release):
    lose(release, "train-0.png", "train-1.png")
    source = {"path": str(release)}
    with pytest.raises(
        InputError, match=r"2 questions in .* 'train' have an image there, but .* 3"
    ):
        _ = data(source, source).calibration


def test_an_undecodable_image_is_named(release):
    (release / "images" / "test-1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"evaluation sample 'test2': image '.*test-1\.png' can"):
        _ = data({"path": str(release)}).evaluation


def test_one_split_for_both_is_refused(release):
    source = {"path": str(release)}
    with pytest.raises(InputError, match=r"are both .*; calibrate on another split, such as train"):
        data(source, source | {"split": "test"})


def test_overlap_of_ids_is_refused(release):
    (release / "train.json").write_text(json.dumps(rows("test")))
    source = {"path": str(release)}
    with pytest.raises(InputError, match="3 calibration samples are also evaluated"):
        data(source, source).setup("fit")


def test_nothing_to_calibrate_on(release):
    with pytest.raises(InputError, match=r"nothing to calibrate on; give data\.calibration"):
        data({"path": str(release)}).setup("fit")


def test_a_task_without_train_split_asks_for_one(release, monkeypatch):
    monkeypatch.setattr(Colors, "train_split", None)
    with pytest.raises(InputError, match=r"colors has no train split; give calibration\.split"):
        data({"path": str(release)}, {"path": "./more"})


def test_wrong_columns_are_named(copy):
    for file in copy.glob("*.parquet"):
        table = Dataset.from_parquet(str(file)).rename_column("answer", "label")
        table.to_parquet(file)
    wanted = r"is no question of colors \(it lacks 'answer'\); its columns are id, question, label"
    with pytest.raises(InputError, match=wanted):
        _ = data({"path": str(copy)}).evaluation


def test_splits_of_different_columns_are_one_fault(copy):
    file = next(copy.glob("test*"))
    Dataset.from_parquet(str(file)).rename_column("answer", "label").to_parquet(file)
    with pytest.raises(InputError, match=r"cannot be read \(Couldn't cast .* names don't match\)"):
        _ = data({"path": str(copy)}).evaluation


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", r"data folder './nowhere' does not exist"),
        ("owner/name", r"hub repository 'owner/name' split 'test' cannot be read .* test\.json"),
    ],
)
def test_nothing_there(path, message):
    with pytest.raises(InputError, match=message):
        _ = data({"path": path}).evaluation
