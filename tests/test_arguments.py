"""What the command line says about a mistake: one sentence, with what is allowed."""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from qvlm_lightning.arguments import (
    OneSentence,
    check_trainer_precision,
    one_sentence,
    usable_accelerator,
)
from qvlm_lightning.errors import InputError


@dataclass
class Weights:
    first: float = 1.0
    second: float = 2.0


class Base:
    """Base of what the command line builds."""


class Thing(Base):
    def __init__(
        self,
        size: int = 1,
        mode: Literal["fast", "slow"] = "fast",
        weights: Weights | None = None,
    ) -> None:
        self.size = size


@pytest.fixture
def complain(capsys):
    parser = OneSentence(prog="prog")
    parser.add_subclass_arguments(Base, "thing")
    parser.add_argument("--count", type=int, default=1)
    path = f"{Thing.__module__}.Thing"

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            parser.parse_args([f"--thing={path}", *arguments])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error.removeprefix("error: ").strip()

    return run


def test_a_wrong_type(complain) -> None:
    assert complain("--thing.size=big") == "thing.size: expected int, got big"


def test_a_wrong_word(complain) -> None:
    sentence = complain("--thing.mode=warp")
    assert sentence == "thing.mode: warp is given; allowed: 'fast', 'slow'"


def test_an_unknown_argument_of_a_class(complain) -> None:
    sentence = complain("--thing.sise=3")
    assert sentence == "thing: option 'sise' is not known; Thing takes size, mode, weights"


def test_an_unknown_argument_of_a_dataclass_inside(complain) -> None:
    sentence = complain('--thing.weights={"third": 3}')
    assert sentence.startswith("thing.weights: option 'third' is not known; Weights takes first")


def test_an_unknown_argument(complain) -> None:
    sentence = complain("--cuont=3")
    assert sentence == "unrecognized arguments: --cuont=3; --help lists what is allowed"


def test_an_unknown_class(complain) -> None:
    sentence = complain("--thing=Nothing")
    assert sentence == "thing: Nothing is not a class known here; give its dotted path"


def test_a_simple_value(complain) -> None:
    assert complain("--count=x").startswith("count: ")


def test_several_lines_become_one() -> None:
    assert one_sentence("Problems parsing:\n  in line 1\n  near x") == (
        "Problems parsing: in line 1 near x"
    )


@pytest.mark.parametrize(("cuda", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_never_takes_an_accelerator_without_float64(monkeypatch, cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert usable_accelerator("auto") == expected
    assert usable_accelerator("gpu") == "gpu"
    with pytest.raises(InputError, match="float64; allowed are cpu and cuda"):
        usable_accelerator("mps")


@pytest.mark.parametrize("precision", [None, 32, "32", "32-true"])
def test_the_trainer_computes_in_32_bits(precision):
    check_trainer_precision(precision)


@pytest.mark.parametrize("precision", [16, "16-true", "16-mixed", "bf16-true", "64-true", "fp8"])
def test_another_precision_of_the_trainer_is_refused(precision):
    with pytest.raises(InputError, match=r"allowed is '32-true'.* the model is family\.dtype"):
        check_trainer_precision(precision)
