"""Compare models on the same questions: differences, intervals, p-values, and an HTML report."""

import sys
from collections.abc import Sequence
from pathlib import Path

from qvlm_lightning.commands._parser import PlainParser
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_whole


def main(argv: Sequence[str]) -> int:
    """Compare stored answers, print tables and write them as JSON, Markdown and HTML.

    Args:
        argv: options of the verb.

    Returns:
        Exit code 0.

    Raises:
        InputError: nothing is stored there, no such reference, or answers that cannot be compared.
    """
    options = _parser().parse_args(list(argv))
    if options.examples < 0:
        raise InputError(f"examples is {options.examples}; allowed are 0 and more")
    out = options.out or beside(options.runs[0])
    if out.is_file():
        raise InputError(f"out is {str(out)!r}, a file; allowed is a folder")
    # seconds of imports: not before the options are known to be right
    from qvlm_lightning.evaluation.questions_of_runs import open_questions, open_questions_of_runs
    from qvlm_lightning.results.compare import compare
    from qvlm_lightning.results.compare_examples import Pictures, changed_examples
    from qvlm_lightning.results.compare_tables import comparison_grids
    from qvlm_lightning.results.entries import load_entries
    from qvlm_lightning.results.html import comparison_html
    from qvlm_lightning.results.render import markdown, show
    from qvlm_lightning.results.report import write_rows

    comparisons = compare(load_entries(options.runs), options.reference)
    samples, notes = open_questions_of_runs(options.runs if options.examples else [])
    samples = {**samples, **open_questions(options.data)}
    for note in notes:
        print(note, file=sys.stderr)
    picture = Pictures()
    changes = {
        c.name: {
            entry.label: changed_examples(
                c, entry, samples.get(c.benchmark, {}), picture, options.examples
            )
            for entry in c.others
        }
        for c in comparisons
    }
    write_rows(out / "compare.json", [row for c in comparisons for row in c.rows])
    text = "\n\n".join(markdown(grid) for c in comparisons for grid in comparison_grids(c))
    write_whole(out / "compare.md", f"{text}\n")
    write_whole(out / "compare.html", comparison_html(comparisons, changes))
    for grid in (g for c in comparisons for g in comparison_grids(c, intervals=False)):
        if len(grid.rows) <= options.groups:
            show(grid)
        else:
            print(f"{grid.title}: {len(grid.rows)} rows, in compare.md")
    print(f"compare.json, compare.md and compare.html are in {out}")
    return 0


def beside(run: str) -> Path:
    """Return the folder ``compare`` beside a run folder, wherever the command is given.

    Args:
        run: a run folder, its ``predictions``, or one of those without its ending.

    Example:
        >>> str(beside("runs/eval")), str(beside("runs/eval/predictions/fp"))
        ('runs/compare', 'runs/compare')
    """
    path = Path(run)
    inside = next((p for p in (path, path.parent) if p.name == "predictions"), None)
    folder = path if inside is None else inside.parent
    return folder.parent / "compare" if folder.name else folder.resolve().parent / "compare"


def _parser() -> PlainParser:
    parser = PlainParser(prog="qvlm compare", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folders of eval.py, or single predictions without their ending",
    )
    parser.add_argument(
        "--reference", help="label, name or path of the model to compare with; the first otherwise"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of what is written; default: compare/ beside the first run",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="CONFIG",
        help="configurations of eval.py whose data has the images of examples; those that eval.py "
        "left in the run folders are found without",
    )
    parser.add_argument(
        "--examples", type=int, default=6, help="changed answers shown per model and direction"
    )
    parser.add_argument(
        "--groups", type=int, default=16, help="longest table that is printed; files have all"
    )
    return parser
