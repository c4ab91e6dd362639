"""Write an artifact in a format that other programs load: compressed-tensors or GGUF."""

from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.errors import InputError

FORMATS = ("compressed-tensors", "gguf")


def main(argv: Sequence[str]) -> int:
    """Export one artifact; the new folder or file appears as a whole or not at all.

    Args:
        argv: options of the verb.

    Returns:
        Exit code 0.

    Raises:
        InputError: the format cannot hold the artifact, a package is missing, the target exists and
            is not empty, or the base file is missing or of another model.
    """
    options = _parser().parse_args(list(argv))
    if options.shard_gb <= 0:
        raise InputError(f"--shard-gb {options.shard_gb} is not allowed; more than 0")
    if options.base is not None and options.format != "gguf":
        raise InputError("--base is for --format gguf; compressed-tensors needs no other file")
    if options.base is None and options.format == "gguf":
        raise InputError(
            "--format gguf needs --base FILE, the full-precision file that llama.cpp's "
            "convert_hf_to_gguf.py makes of the model"
        )
    check_target(options.output)
    # seconds of imports: not before the options are known to be right
    from qvlm_lightning.artifact import load_artifact
    from qvlm_lightning.export import export_compressed_tensors, export_gguf

    artifact = load_artifact(options.artifact)
    if options.format == "gguf":
        done = export_gguf(artifact, options.output, options.base)
    else:
        shard_bytes = int(options.shard_gb * 1000**3)
        done = export_compressed_tensors(artifact, options.output, options.artifact, shard_bytes)
    print(f"{options.output}: {done.layers} quantized layers, {done.nbytes / 1e6:,.1f} MB")
    for line in (*done.schemes, *done.notes):
        print(f"  {line}")
    return 0


def check_target(output: Path) -> None:
    """Refuse a target that holds anything, before any work.

    Args:
        output: folder of the export.

    Raises:
        InputError: it is no folder, or not empty.
    """
    from qvlm_lightning.files import check_folder

    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"--output {str(output)!r} is not empty; give a new or an empty folder")
    check_folder(output)


def _parser() -> PlainParser:
    parser = PlainParser(prog="qvlm export", description=__doc__)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder of an artifact")
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="what the other program reads"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new folder of the export"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="gguf: full-precision file of the same model, made by llama.cpp's own converter",
    )
    parser.add_argument(
        "--shard-gb",
        type=float,
        default=5.0,
        metavar="GB",
        help="compressed-tensors: most gigabytes (1000**3 bytes) of a file of weights; default 5",
    )
    return parser
