"""Build the joined model: ``make joined`` runs ``python -m tools.joined``."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import InputError
from tools.joined import adapter, checks
from tools.joined.assemble import assemble, read_language, read_tower
from tools.joined.parts import LANGUAGE, TOWER, check_disk, path_of
from tools.joined.questions import easy_vqa

CARD = """---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# Joined: DINOv2-small, a projector, SmolLM2-135M-Instruct

A pretrained tower and a pretrained language model, joined and briefly tuned by qvlm-lightning to
answer questions about simple pictures; a model to try quantization on, not to use. The language
model comes 4-bit rounded from its package, so that 4 bits here are second generation.

| part | from | licence |
|---|---|---|
{parts}
| adapter | trained by tools/joined/train.py | Apache-2.0 |

{table}
"""


def main(argv: list[str] | None = None) -> int:
    """Build the folder, check it and say what it is."""
    parser = argparse.ArgumentParser(prog="python -m tools.joined", description=main.__doc__)
    parser.add_argument("--parts", type=Path, required=True, help="where the packages are")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--data", type=Path, help="easy-VQA; without it no question is asked")
    parser.add_argument("--questions", type=int, default=600, help="of the test split; 0 for all")
    parser.add_argument("--adapter", type=Path, default=adapter.FILE)
    args = parser.parse_args(argv)
    try:
        return build(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def build(args: argparse.Namespace) -> int:
    """Do so; 0 if every check holds."""
    began = time.monotonic()
    files = [path_of(part, args.parts) for part in (LANGUAGE, TOWER)]
    if not args.adapter.is_file():
        raise InputError(
            f"adapter {str(args.adapter)!r} is missing; make it: tools/joined/train.py"
        )
    if args.output.exists() and any(args.output.iterdir()):
        raise InputError(f"{str(args.output)!r} is not empty; remove it or give another folder")
    check_disk(args.output)
    asked = easy_vqa(args.data, "test") if args.data else None
    language, tokenizer = read_language(files[0])
    before = checks.reading(language.model, language.lm_head, tokenizer)
    tower = read_tower(files[1])
    difference = checks.check_tower(files[1], tower)
    model, processor = assemble(language, tokenizer, tower)
    adapter.merge(model, args.adapter)
    after = checks.reading(model.model.language_model, model.lm_head, tokenizer)
    answered = asked and checks.accuracy(model, processor, asked, args.questions or None)
    table = said(before, after, answered or None)
    short = checks.shortfalls(before, after, answered or None)
    if short:
        raise InputError("the model is not what it should be: " + "; ".join(short))
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    rows = [f"| {x.what} | {x.requirement} | {x.licence} |" for x in (TOWER, LANGUAGE)]
    card = CARD.format(parts="\n".join(rows), table=table)
    (args.output / "README.md").write_text(card, encoding="utf-8")
    facts: dict[str, Any] = {"before": vars(before), "after": vars(after), "answered": answered}
    facts["tower_difference"] = difference
    (args.output / "build.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in args.output.iterdir()) / 2**20
    print(table)
    print(f"\nThe tower differs from its file by {difference:.0e} of the largest output.")
    print(f"\n{args.output}: {size:.0f} MiB, {time.monotonic() - began:.0f} s")
    return 0


def said(before: checks.Language, after: checks.Language, answered: dict[str, float] | None) -> str:
    """Return a table of what was checked, in Markdown."""
    rows = ["| | language model of the package | joined |", "|---|--:|--:|"]
    rows += [
        f"| perplexity of the passage | {before.perplexity:.2f} | {after.perplexity:.2f} |",
        f"| largest input of a down projection | {before.down_input:.0f} (layer {before.site}) | "
        f"{after.down_input:.0f} (layer {after.site}) |",
        f"| largest residual | {before.residual:.0f} | {after.residual:.0f} |",
    ]
    for kind, value in (answered or {}).items():
        rows.append(f"| easy-VQA test, {kind}, % | – | {value:.1f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
