"""Make the page of a finished calibration again, from its folder; nothing in it is executed."""

from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser


def main(argv: Sequence[str]) -> int:
    """Write ``report.html`` into run folders and print what the runs did.

    Args:
        argv: options of the verb.

    Returns:
        Exit code 0.

    Raises:
        InputError: a folder holds no report of a calibration.
    """
    parser = PlainParser(prog="qvlm report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders of train.py")
    options = parser.parse_args(list(argv))
    # seconds of imports: not before the options are known to be right
    from qvlm_lightning.results.run_report import read_report, show_run, write_run_page

    for root in options.runs:
        read_report(root)  # of all, before anything is written
    for root in options.runs:
        write_run_page(root)
        show_run(root)
    return 0
