import pytest
import torch
from PIL import Image

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.data.tiny import TinyVQA
from qvlm_lightning.errors import InputError
from qvlm_lightning.models import Llava
from qvlm_lightning.models.tiny import WEIGHTS

FAMILY = Llava(str(WEIGHTS))


class Fixed(VQADataModule):
    """Serves given samples."""

    def __init__(self, calibration, evaluation, **sizes):
        super().__init__(FAMILY, **sizes)
        self.given = calibration, evaluation

    def calibration_samples(self):
        return self.given[0]

    def evaluation_samples(self):
        return self.given[1]


def pair(name: str, color: str = "red") -> Sample:
    return Sample(name, Image.new("RGB", (48, 48), color), f"what is {name}?", answer="yes")


def indices(batches) -> list[list[int]]:
    return [batch["sample_index"].tolist() for batch in batches]


def test_calibration_batches_keep_the_order():
    data = TinyVQA(FAMILY, calibration_pairs=5, search_pairs=3, batch_size=2, evaluation_count=4)
    assert indices(data.calibration_batches()) == [[0, 1], [2, 3], [4]]
    assert indices(data.search_batches()) == [[0, 1], [2]]
    assert data.calibration_ids == [s.id for s in data.calibration_samples()]


def test_same_seed_same_batches_and_another_seed_others():
    first, again, other = (
        TinyVQA(FAMILY, calibration_pairs=2, search_pairs=1, seed=seed).calibration_batches()[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_evaluation_does_not_depend_on_the_seed():
    ids = [TinyVQA(FAMILY, evaluation_count=3, seed=seed).evaluation_ids for seed in (0, 1)]
    assert ids[0] == ids[1]


def test_processes_share_every_batch_and_have_as_many():
    data = TinyVQA(FAMILY, calibration_pairs=10, search_pairs=1, batch_size=4)
    shares = [indices(data.rank_batches(rank, 2)) for rank in (0, 1)]
    assert shares == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]


@pytest.mark.parametrize(("pairs", "batch_size"), [(8, 2), (9, 4)])
def test_batch_smaller_than_the_number_of_processes_is_refused(pairs, batch_size):
    data = TinyVQA(FAMILY, calibration_pairs=pairs, search_pairs=1, batch_size=batch_size)
    with pytest.raises(InputError, match="every process needs at least one"):
        data.rank_batches(0, 3)


def test_questions_come_once_and_in_buckets_of_length():
    data = TinyVQA(FAMILY, evaluation_count=40, evaluation_batch_size=8)
    batches = data.test_dataloader()
    assert len(batches) == 5
    assert sorted(i for b in indices(batches) for i in b) == list(range(40))
    kinds = [set(batch["has_image"].tolist()) for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)


@pytest.mark.parametrize(
    ("calibration", "evaluation", "message"),
    [
        ([], [pair("e")], "calibration set has no samples"),
        ([pair("a")], [pair("e")], "has 1 samples, but 2 were asked for"),
        ([pair("a"), pair("b")], [], "evaluation set has no samples"),
        ([pair("a"), pair("b")], [pair("b")], "also evaluated, such as 'b'"),
    ],
)
def test_faulty_data_ends_in_setup(calibration, evaluation, message):
    data = Fixed(calibration, evaluation, calibration_pairs=2, search_pairs=1, evaluation_count=1)
    with pytest.raises(InputError, match=message):
        data.setup("fit")


def test_all_questions_are_evaluated_without_a_count():
    asked = [pair("e"), pair("f"), pair("g")]
    assert Fixed([], asked, evaluation_count=None).evaluation_ids == ["e", "f", "g"]
    assert Fixed([], asked, evaluation_count=2).evaluation_ids == ["e", "f"]
    with pytest.raises(InputError, match="evaluation set has no samples"):
        _ = Fixed([], [], evaluation_count=None).evaluation
    with pytest.raises(InputError, match="this set has no end"):
        _ = TinyVQA(FAMILY, evaluation_count=None).evaluation


def test_answers_of_the_calibration_set_can_be_declared_optional():
    mute = [Sample("a", Image.new("RGB", (48, 48)), "what?")]
    data = Fixed(mute, [], calibration_pairs=1, search_pairs=1)
    with pytest.raises(InputError, match="calibration sample 'a' has no answer"):
        _ = data.calibration
    data.answers_needed = False
    assert (data.calibration_batches()[0]["labels"] == -100).all()


@pytest.mark.parametrize("name", ["calibration_pairs", "batch_size", "evaluation_count"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is 0; allowed"):
        TinyVQA(FAMILY, **{name: 0})


def test_search_needs_pairs_to_search():
    with pytest.raises(InputError, match="search_pairs is 9; allowed are 1 to calibration_pairs"):
        TinyVQA(FAMILY, calibration_pairs=8, search_pairs=9)


def test_a_batch_is_collated_once(monkeypatch):
    from qvlm_lightning.data import base

    made = []

    def counted(samples, *args, **options):
        made.append([s.id for s in samples])
        return collate(samples, *args, **options)

    collate = base.collate
    monkeypatch.setattr(base, "collate", counted)
    data = TinyVQA(FAMILY, calibration_pairs=5, search_pairs=3, batch_size=2)
    whole, search = data.calibration_batches(), data.search_batches()
    assert indices(search) == [[0, 1], [2]]
    assert indices(data.rank_batches(0, 1)) == indices(whole)
    assert indices(list(data.train_dataloader())) == indices(whole)
    assert len(made) == 4  # three, and the half one of the search


def test_an_interrupted_epoch_goes_on_where_it_stopped():
    from qvlm_lightning.data.loaders import CalibrationLoader

    place = [0]
    loader = CalibrationLoader([{"n": torch.tensor(n)} for n in range(4)], lambda: place[0])
    assert len(loader) == 4
    assert [int(b["n"]) for b in loader] == [0, 1, 2, 3]
    place[0] = 3
    assert [int(b["n"]) for b in loader] == [3]
