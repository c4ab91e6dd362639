"""The parser of the programs: its complaints are one sentence, not a tree."""

import inspect
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any, NoReturn

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser

from qvlm_lightning.errors import InputError
from qvlm_lightning.exits import USER_FAULT

_HELP = "--help lists what is allowed"
# Lines that say where a complaint stands or repeat it; what is left is the complaint.
_FRAME = re.compile(
    r"$|Does not validate against|Subtypes:|Errors:|Given value type:|Expected a path but"
)


class OneSentence(ArgumentParser):
    """A parser whose complaints are one sentence.

    Attributes:
        described: prefix of options -> classes that may stand there, whose options the help shows.
    """

    described: Mapping[str, Sequence[type]] = {}

    def format_help(self, *args: Any, **options: Any) -> str:
        """Return the help, with the options of classes that jsonargparse leaves to another help."""
        parts = [
            options_of(prefix, kind) for prefix, kinds in self.described.items() for kind in kinds
        ]
        return "\n".join([super().format_help(*args, **options), *parts])

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was given and what is allowed, and end with code 2."""
        if not self.exit_on_error:  # a trial inside jsonargparse: somebody is waiting for this
            super().error(message, ex)
        print(f"error: {one_sentence(message)}", file=sys.stderr)
        raise SystemExit(USER_FAULT) from None


def options_of(prefix: str, kind: type) -> str:
    """Return the options of a class as its docstring describes them.

    Args:
        prefix: of the options, such as ``model``.
        kind: the class; what it inherits and does not name is not shown.

    """
    said = parse_from_object(kind)
    about = {p.arg_name: " ".join((p.description or "").split()) for p in said.params}
    lines = [f"--{prefix} {kind.__name__}: {said.short_description or ''}"]
    for name, given in inspect.signature(kind).parameters.items():
        if given.kind in (given.VAR_KEYWORD, given.VAR_POSITIONAL):
            continue
        told = given.default not in (given.empty, None) and "factory" not in repr(given.default)
        text = about.get(name, "") + (f" (default: {given.default})" if told else "")
        shown = wrap(text.strip(), 78, initial_indent=_IN, subsequent_indent=_IN)
        lines += [f"  --{prefix}.{name}", *shown]
    return "\n".join([*lines, ""])


_IN = " " * 8


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
    import torch  # seconds, which the help of a verb need not wait for

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


_CHANGES_RESULTS = {
    "limit_train_batches": ((None, 1, 1.0), "use fewer data.calibration_pairs"),
    "overfit_batches": ((None, 0, 0.0), "use fewer data.calibration_pairs"),
    "max_steps": ((None, -1), "the number of steps follows from model.epochs and the data"),
    "min_steps": ((None,), "the number of steps follows from model.epochs and the data"),
    "max_epochs": ((None,), "epochs of visual-encoder optimisation are model.epochs"),
    "min_epochs": ((None,), "epochs of visual-encoder optimisation are model.epochs"),
    "max_time": ((None,), "a run that is stopped resumes with --ckpt_path last"),
    "accumulate_grad_batches": ((None, 1), "a step's batch is data.batch_size"),
    "gradient_clip_val": ((None,), "gradients are clipped by model.grad_clip"),
    "gradient_clip_algorithm": ((None,), "gradients are clipped by model.grad_clip"),
    "reload_dataloaders_every_n_epochs": ((None, 0), "calibration batches are fixed"),
    "enable_checkpointing": ((None, True), "a stopped run resumes from its checkpoint"),
    "barebones": ((None, False), "a run keeps what it resumes from"),
}
"""Arguments of the Trainer that would change a result in silence -> what is allowed, and why."""


def check_trainer_options(given: Mapping[str, Any]) -> None:
    """Refuse arguments of the Trainer that would change a calibration's result in silence.

    Args:
        given: the Trainer's arguments.

    Raises:
        InputError: such an argument, a precision that is not float32's, or no device.

    Example:
        >>> check_trainer_options({"max_epochs": None, "devices": 1})
    """
    check_trainer_precision(given.get("precision"))
    for name, (allowed, reason) in _CHANGES_RESULTS.items():
        if (value := given.get(name)) not in allowed:
            raise InputError(f"trainer.{name} is {value!r}; allowed is {allowed[-1]!r}: {reason}")
    if (given.get("log_every_n_steps") or 1) < 1:
        raise InputError(
            f"trainer.log_every_n_steps is {given['log_every_n_steps']}; allowed are 1 and more"
        )
    devices = given.get("devices", 1)
    if devices in (0, "0", "", [], ()):
        raise InputError(f"trainer.devices is {devices!r}; allowed are 1 and more, auto, or -1")
    if given.get("fast_dev_run") not in (None, False, True, 1):
        raise InputError(
            f"trainer.fast_dev_run is {given['fast_dev_run']!r}; allowed are true and false"
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
    if allowed := re.fullmatch(r"Expected a typing\.Literal\[(.*)\]", complaint):
        return f"{given!r} is given; allowed: {allowed[1]}"  # one of several types
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
