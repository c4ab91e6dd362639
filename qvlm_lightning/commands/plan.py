"""Say what a calibration would quantize, what comes out and what it needs; load no weights."""

import sys
from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_json

_WIDTH_OF_FILES = 125


def main(argv: Sequence[str]) -> int:
    """Plan a calibration on a model without weights, from the options of ``train.py fit``.

    Args:
        argv: options of the verb; those it does not know are the calibration's.

    Returns:
        Exit code 0.

    Raises:
        InputError: a size that is not positive, a model or scheme that cannot be planned, or a
            report of another model.
    """
    own, options = _parser().parse_known_args(list(argv))
    for name in ("tokens", "patches", "device_gib"):
        value = getattr(own, name)
        if value is not None and value <= 0:
            raise InputError(f"--{name.replace('_', '-')} {value} is not allowed; more than 0")

    import torch
    from rich.console import Console

    from qvlm_lightning.commands._plan_massive import MassiveSites
    from qvlm_lightning.commands._plan_measured import Named
    from qvlm_lightning.commands._plan_rehearsal import Rehearsal, table_of
    from qvlm_lightning.commands._plan_tables import Plan
    from qvlm_lightning.commands._plan_workload import read
    from qvlm_lightning.estimate.workload import Workload
    from qvlm_lightning.nn.surgery import quantize_model

    planned = read(options)
    model = planned.family.weightless()
    structure = quantize_model(model, planned.family, planned.scheme, torch.device("cpu"))
    massive = own.report and MassiveSites(own.report, planned.family, planned.scheme, structure)
    fixed = planned.family.vision_positions(model)
    workload = Workload(
        pairs=planned.pairs,
        search_pairs=planned.search_pairs,
        batch_size=planned.batch_size,
        processes=planned.processes,
        tokens=own.tokens,
        patches=own.patches or fixed or 1024,
        depth=planned.depth,
        method=planned.method,
        optimises=planned.optimises,
        streaming=bool(planned.streaming),
        spills=planned.streaming == "disk",
        micro_batches=planned.micro_batches,
        activation_checkpointing=planned.activation_checkpointing,
    )
    workload.check()
    methods = []
    if own.rehearse is not None:
        methods = [Named.of(name) for name in own.rehearse]
        if not methods and planned.method is not None:
            name = planned.method.name
            methods = [Named(name, planned.method, planned.depth, planned.optimises)]
    plan = Plan(planned.family, planned.scheme, model, structure, workload, own.device_gib)
    # into a file or a pipe, tables are as wide as they need
    width = own.width if own.width or sys.stdout.isatty() else _WIDTH_OF_FILES
    console = Console(width=width, highlight=False)
    plan.show(console, own.modules)
    if massive:
        massive.show(console)
    found = []
    if methods:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rehearsal = Rehearsal(model, planned.family, structure, planned.scheme, workload, device)
        found = [rehearsal.forecast(named) for named in methods]
        console.print(table_of(found, methods, device))
    if own.json is not None:
        more = massive.values() if massive else {}
        values = [forecast.values() for forecast in found]
        write_json(own.json, plan.values() | more | ({"rehearsal": values} if values else {}))
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="qvlm plan",
        description=__doc__,
        epilog="All other options are those of train.py fit: -c FILE, --model.family.path FOLDER "
        "... A folder with a config.json is enough, such as configs/models/shapes/llava-1.5-7b.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the plan to this file")
    parser.add_argument(
        "--tokens",
        type=int,
        default=640,
        metavar="T",
        help="tokens of a calibration pair, those of its image included; default 640",
    )
    parser.add_argument(
        "--patches",
        type=int,
        metavar="P",
        help="tokens of an image in the tower; default what the model says, or 1024 where it is "
        "the image that decides",
    )
    parser.add_argument(
        "--device-gib", type=float, metavar="GIB", help="memory of one device, to say what fits"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="REPORT",
        help="report.json of an earlier run of this model: show at which sites single tokens were "
        "far larger than the others, and overrides that give these sites more bits",
    )
    parser.add_argument(
        "--rehearse",
        nargs="*",
        metavar="METHOD",
        help="run the method, or those named (files of configs/methods), on a few layers of random "
        "weights that are as wide as the model's, to say seconds and memory on this machine",
    )
    parser.add_argument(
        "--modules", action="store_true", help="list every module, not one line per kind"
    )
    parser.add_argument("--width", type=int, metavar="COLUMNS", help="of the printed tables")
    return parser
