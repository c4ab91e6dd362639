"""Answer a question about an image with an artifact, token by token, and say how fast."""

from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.errors import InputError

_MANIFEST = "quantization.json"  # weights.exported, whose import takes seconds


def main(argv: Sequence[str]) -> int:
    """Load an artifact in packed form, print its answer as it comes, and figures behind it.

    Args:
        argv: options of the verb.

    Returns:
        Exit code 0.

    Raises:
        InputError: an option, the artifact or the image cannot be used.
    """
    options = _parser().parse_args(list(argv))
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {options.max_new_tokens} is not allowed; at least 1")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads {options.threads} is not allowed; at least 1")
    if options.head_bits is not None and options.head_bits not in range(2, 9):
        raise InputError(f"--head-bits {options.head_bits} is not allowed; allowed: 2 to 8")
    if not options.prompt.strip():
        raise InputError("--prompt is empty; give a question")
    if options.image is not None and not options.image.is_file():
        raise InputError(f"--image {str(options.image)!r} is no file")
    if options.artifact.is_dir() and not (options.artifact / _MANIFEST).is_file():
        raise InputError(f"{str(options.artifact)!r} is not an artifact: it has no {_MANIFEST}")
    # seconds of imports: not before the options are known to be right
    from qvlm_lightning.commands._generating import run

    run(options)
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(prog="qvlm generate", description=__doc__)
    parser.add_argument(
        "--artifact",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="what a calibration exported, or owner/name on the hub",
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the question")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the image, if there is one")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="longest answer; default 128"
    )
    parser.add_argument(
        "--simulate", action="store_true", help="fake-quantize instead of packing, as eval.py does"
    )
    parser.add_argument(
        "--head-bits",
        type=int,
        metavar="BITS",
        help="round the output head to so many bits, 2 to 8; default as it was exported",
    )
    parser.add_argument(
        "--kv-cache",
        choices=("full", "int8"),
        default="full",
        help="how keys and values are stored; default full",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU; default all")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file")
    return parser
