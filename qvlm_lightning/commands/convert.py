"""Convert LLaVA v1.3/v1.5 and MoE-LLaVA folders of their authors to the Hugging Face layout."""

from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Convert one folder; the new one appears as a whole or not at all.

    Args:
        argv: options of the verb.

    Returns:
        Exit code 0.

    Raises:
        InputError: an unknown or incomplete checkpoint, or a target that exists.
    """
    options = _parser().parse_args(list(argv))
    if options.shard_gb <= 0:
        raise InputError(f"--shard-gb {options.shard_gb} is not allowed; more than 0")

    from rich.console import Console
    from rich.progress import Progress

    from qvlm_lightning.models.conversion import convert

    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        shown = bar.add_task("convert", total=None)
        done = convert(
            options.source,
            options.target,
            vision_tower=options.vision_tower,
            tokenizer=options.tokenizer,
            shard_bytes=int(options.shard_gb * 1024**3),
            progress=lambda count, of: bar.update(shown, completed=count, total=of),
        )
    print(
        f"{options.target}: {done.model_type}, {done.tensors:,} tensors, "
        f"{done.nbytes / 1024**3:.2f} GiB"
    )
    for note in done.notes:
        print(f"  {note}")
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(prog="qvlm convert", description=__doc__)
    parser.add_argument(
        "source", type=Path, help="folder with the authors' config.json and weights"
    )
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument(
        "--vision-tower",
        type=Path,
        metavar="FOLDER",
        help="CLIP folder that the checkpoint refers to, where it does not hold the tower itself",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="folder with tokenizer.json, where the checkpoint has only a tokenizer.model",
    )
    parser.add_argument(
        "--shard-gb",
        type=float,
        default=2.0,
        metavar="GIB",
        help="size of a file of weights, and about the memory needed; default 2",
    )
    return parser
