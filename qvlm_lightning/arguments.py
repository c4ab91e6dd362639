"""The parser of the Lightning programs: its complaints are one sentence, not a tree."""

import inspect
import pkgutil
import re
import sys
from typing import NoReturn

import torch
from lightning.pytorch.cli import LightningArgumentParser

from qvlm_lightning.errors import InputError
from qvlm_lightning.exits import USER_FAULT

_HELP = "--help lists what is allowed"
# Lines that say where a complaint stands or repeat it; what is left is the complaint.
_FRAME = re.compile(
    r"$|Does not validate against|Subtypes:|Errors:|Given value type:|Expected a path but"
)


class OneSentenceParser(LightningArgumentParser):
    """For ``LightningCLI(parser_class=OneSentenceParser)``."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was given and what is allowed, and end with code 2."""
        if not self.exit_on_error:  # a trial inside jsonargparse: somebody is waiting for this
            super().error(message, ex)
        print(f"error: {one_sentence(message)}", file=sys.stderr)
        raise SystemExit(USER_FAULT) from None


def usable_accelerator(asked: str) -> str:
    """Resolve ``auto`` to what the arithmetic runs on: CUDA where there is one, else the CPU.

    Lightning would take Apple's MPS, which has no float64.

    Args:
        asked: the Trainer's ``accelerator``.

    Raises:
        InputError: MPS was asked for.

    Example:
        >>> usable_accelerator("cpu")
        'cpu'
    """
    if asked == "mps":
        raise InputError("accelerator mps is given, which has no float64; allowed are cpu and cuda")
    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_trainer_precision(precision: int | str | None) -> None:
    """Refuse a Trainer that computes in another type than the model's own.

    ``bf16-true`` would cast scales and ranges with the weights, without a word; ``16-true`` would
    end in an overflow, late.

    Args:
        precision: the Trainer's ``precision``; None is its default, 32-true.

    Raises:
        InputError: anything but 32-true.

    Example:
        >>> check_trainer_precision("32-true")
    """
    if precision not in (None, 32, "32", "32-true"):
        raise InputError(
            f"trainer.precision is {precision!r}; allowed is '32-true', because quantizers compute "
            "in float32; the type of the model is family.dtype, such as --model.family.dtype "
            "bfloat16"
        )


def one_sentence(message: str) -> str:
    r"""Find the complaint in jsonargparse's account of everything it tried.

    Args:
        message: what the parser says.

    Returns:
        ``<key>: <complaint>; <what is allowed>``.

    Example:
        >>> one_sentence('Parser key "model":\n  Expected a <class \'int\'>. Got value: many')
        'model: expected int, got many'
    """
    keys, owner, complaint, given = [], "", "", ""
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if key := re.match(r'Parser key "(.*?)":\s*(.*)', text):
            keys.append(key[1])
            text = key[2]
        elif place := re.match(r"Problem with given class_path '(.*)':", text):
            owner, text = place[1], ""
        elif value := re.match(r"Given value: (.*)", text):
            given, text = given or value[1], ""
        if not complaint and not _FRAME.match(text):
            complaint = text
    if not keys:  # a plain message, perhaps over several lines
        complaint = " ".join(message.split())
    return ": ".join(filter(None, [".".join(keys), _tidy(complaint, owner, given)]))


def _tidy(complaint: str, owner: str, given: str) -> str:
    """Say types by their names, and what is allowed where the parser does not."""
    complaint = re.sub(r"<class '([\w.]*\.)?(\w+)'>", r"\2", complaint)
    complaint = re.sub(r"Expected an? (\w+)\. Got value: ", r"expected \1, got ", complaint)
    complaint = re.sub(
        r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)",
        r"\2 is given; allowed: \1",
        complaint,
    )
    if option := re.fullmatch(r"Option '(.*)' is not accepted", complaint):
        return f"option {option[1]!r} is not known; {_accepted(owner)}"
    if name := re.fullmatch(r"Expected a dot import path string: (.*)", complaint):
        return f"{name[1]} is not a class known here; give its dotted path"
    if re.fullmatch(r"Expected a \w+", complaint):
        value = re.sub(r"NestedArg\(key='.*', val='(.*)'\)", r"\1", given)
        return f"expected {complaint.split()[-1]}, got {value}"
    if complaint.startswith(("unrecognized arguments", "the following arguments are required")):
        return f"{complaint}; {_HELP}"
    return complaint


def _accepted(owner: str) -> str:
    """List the arguments of a class; point at the help if there is none."""
    if not owner:
        return _HELP
    names = [
        name for name in inspect.signature(pkgutil.resolve_name(owner)).parameters if name != "self"
    ]
    return f"{owner.rpartition('.')[2]} takes {', '.join(names) or 'none'}"
