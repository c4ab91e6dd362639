"""Score anybody's predictions against a benchmark's annotations, without a model."""

from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.tasks.find import task_names


def main(argv: Sequence[str]) -> int:
    """Score a file of predictions, print a table and write the figures.

    Args:
        argv: options of the verb.

    Returns:
        Exit code 0.

    Raises:
        InputError: an unknown task, mode or split, a file that is missing or malformed, or
            predictions of other questions.
    """
    options = _parser().parse_args(list(argv))
    # seconds of imports: not before the options are known to be right
    from qvlm_lightning.commands._scoring import run

    return run(options)


def _parser() -> PlainParser:
    parser = PlainParser(prog="qvlm score", description=__doc__)
    tasks = ", ".join(task_names())
    parser.add_argument("--task", required=True, help=f"{tasks}, or the path of a class")
    parser.add_argument(
        "--predictions",
        required=True,
        type=Path,
        metavar="FILE",
        help='JSON lines of {"id": ..., "text": ...}, with "confidence" for what is ranked by it',
    )
    parser.add_argument(
        "--annotations",
        required=True,
        type=Path,
        metavar="PATH",
        help="file of the official release, or a folder (docs/evaluation.md)",
    )
    parser.add_argument("--split", help="split in that folder; the task's own default otherwise")
    parser.add_argument("--mode", help="scoring rule; the task's first one otherwise")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the task's class, such as random_fallback=0 of scienceqa; repeatable",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="where to write all figures")
    return parser
