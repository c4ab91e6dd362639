import pytest

from qvlm_lightning.data.tiny import TinyVQA
from qvlm_lightning.errors import InputError
from qvlm_lightning.models import Tiny


def data(split: str, **sizes) -> TinyVQA:
    given = {"calibration_pairs": 4, "search_pairs": 2, "evaluation_count": 30}
    return TinyVQA(Tiny(), evaluation_split=split, **(given | sizes))


def test_the_split_decides_what_is_evaluated_and_nothing_else():
    test, development = data("test"), data("development")
    assert (test.split, development.split) == ("test", "development")
    assert {name.split("-")[0] for name in development.evaluation_ids} == {"development"}
    asked = [{s.question for s in split.evaluation if s.image} for split in (test, development)]
    assert asked[0] != asked[1]
    assert test.calibration_ids == development.calibration_ids


def test_the_test_split_is_the_default():
    assert TinyVQA(Tiny(), evaluation_count=30).evaluation_ids == data("test").evaluation_ids


@pytest.mark.parametrize("split", ["test", "development"])
def test_either_split_may_stand_beside_the_calibration_pairs(split):
    data(split, calibration_pairs=64, search_pairs=16, evaluation_count=2000).setup("fit")


def test_an_unknown_split_is_named():
    with pytest.raises(InputError, match="is 'train'; allowed are test, development"):
        data("train")
