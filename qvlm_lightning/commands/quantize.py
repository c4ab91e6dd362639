"""Calibrate a model of your own on your own data: one command, everything else chosen for you."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.errors import InputError

MANIFEST = "quantization.json"
METHOD, SCHEME = "qvlm_plus_fast", "w4a8"
"""Defaults; why, is in docs/joined.md."""


def main(argv: Sequence[str]) -> int:
    """Choose what fits model, data and machine, say it, and run ``train.py fit`` with it.

    Args:
        argv: options of the verb; those it does not know are those of ``train.py fit``, and win.

    Returns:
        Exit code 0.

    Raises:
        InputError: a model, data, method or scheme that cannot be used, a run folder that holds a
            run, or a model that does not fit this machine.
    """
    own, others = _parser().parse_known_args(list(argv))
    if others and not others[0].startswith("-"):
        raise InputError(f"{others[0]!r} is given without an option; --help tells the options")
    asked = any(option.partition("=")[0] == "--ckpt_path" for option in others)
    if (own.output / "config.yaml").exists() and not asked:
        if (own.output / "artifact" / MANIFEST).exists():
            raise InputError(
                f"run folder {str(own.output)!r} already holds a run, with its artifact; choose "
                "another --output"
            )
        print(f"going on with the run in {own.output}")
        others = [*others, "--ckpt_path=last"]
    # seconds of imports: not before the options are known to be right
    from qvlm_lightning.cli import train_main
    from qvlm_lightning.commands._quantize_choice import (
        choose,
        data_of,
        family_of,
        scheme_options,
    )
    from qvlm_lightning.presets import config_file
    from qvlm_lightning.results.next_steps import program

    name = own.method or METHOD
    method = Path(name) if name.endswith(".yaml") else config_file("methods", name)
    scheme = scheme_options(own.scheme, own.mode)
    family = family_of(own.model, own.dtype)
    data, _ = data_of(own.data, family, own.seed)
    base = f"--config={config_file('', 'base')}"
    options = [
        f"--config={config_file('data', 'chat')}",
        f"--trainer.default_root_dir={own.output}",
        f"--data.calibration.path={own.data}",
        f"--data.seed={own.seed}",
        *scheme,
    ]
    chosen = choose(family, data, [base, f"--config={method}", *options, *others])
    print(f"{name}, {own.scheme}: {'; '.join(chosen.sentences)}")
    options = [base, f"--config={method}", *options, *chosen.options(own.model), *others]
    if own.print_command:
        print(shlex.join([program(), "train.py", "fit", *options]))
        return 0
    train_main(["fit", *options])
    print(f"artifact: {own.output / 'artifact'}; load it with qvlm_lightning.load")
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="qvlm quantize",
        description=__doc__,
        epilog="All other options are those of train.py fit, such as --trainer.devices 2 or "
        "--model.method.objective plain. The same command goes on with a run that was stopped.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", required=True, help="Hugging Face model folder, or owner/name on the hub"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="calibration data: JSON lines beside images, or a folder of parquet files",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="run folder; must hold no run that has ended",
    )
    parser.add_argument(
        "--scheme",
        default=SCHEME,
        help=f"such as w4a16, w8a8 or a file in configs/schemes; default {SCHEME}",
    )
    parser.add_argument(
        "--mode",
        metavar="MODE",
        help="ranges of activations: static_tensor, static_channel or dynamic_token; default that "
        "of the scheme",
    )
    parser.add_argument(
        "--method",
        help=f"a file in configs/methods, or the path of one of yours; default {METHOD}",
    )
    parser.add_argument(
        "--dtype",
        help="type in which the model computes: float32, bfloat16 or float16; default "
        "that of its files",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the calibration pairs")
    parser.add_argument(
        "--print-command",
        action="store_true",
        help="print the command of train.py that would run, and run nothing",
    )
    return parser
