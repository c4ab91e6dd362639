import pytest
import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.precision import PRECISIONS, cast, check_precision, precision_of
from qvlm_lightning.models import Llava
from qvlm_lightning.models.tiny import WEIGHTS


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_cast_model_is_one_that_was_loaded_so(precision, dtype):
    cast_model = Llava(str(WEIGHTS)).load_model()
    cast(cast_model, precision)
    loaded = Llava(str(WEIGHTS), dtype).load_model()
    assert precision_of(cast_model) == precision_of(loaded) == precision
    mine, theirs = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (cast_model, loaded))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def test_the_largest_weight_decides():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(9, 9).to(torch.bfloat16))
    assert precision_of(model) == "bf16"


def test_other_types_are_named():
    with pytest.raises(
        InputError, match=r"weights are torch.float64; allowed are fp32, bf16, fp16"
    ):
        precision_of(nn.Linear(2, 2).double())


@pytest.mark.parametrize("name", [None, *PRECISIONS])
def test_known_names_pass(name):
    check_precision(name)


def test_unknown_names_do_not():
    with pytest.raises(InputError, match="precision is 'int8'; allowed are fp32, bf16, fp16"):
        check_precision("int8")
