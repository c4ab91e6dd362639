"""What an evaluation found, in about ten lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.render import Number, cell, nats, points, signed
from qvlm_lightning.results.report import variant_rows
from qvlm_lightning.results.rows import Row
from qvlm_lightning.results.run_facts import Fact, clock
from qvlm_lightning.results.variant import variant_title


def evaluation_facts(
    answered: Predictions, known: Mapping[str, Predictions], root: Path
) -> list[Fact]:
    """Return name and text of what to know of an evaluation; what is not there is left out.

    Args:
        answered: the answers of the variant.
        known: all stored answers of the run folder.
        root: run folder.
    """
    variant = answered.variant
    own = [row for row in variant_rows(answered, known) if row["task"] == OVERALL]

    def found(metric: str) -> list[Row]:
        return [row for row in own if row["metric"] == metric]

    split = f", {answered.split} split" if answered.split else ""
    title = variant_title(variant.method, variant.scheme, variant.row)
    mode = "" if variant.is_fp else f", activations {variant.activation_mode}"
    facts = [
        ("model", variant.model),
        (
            "answered by",
            f"{title}{mode}",
        ),
        ("questions", f"{len(answered.ids):,} of {answered.benchmark}{split}, {answered.mode}"),
        ("accuracy", f"{cell(found('accuracy'), points)} %"),
        ("against full precision", _with_unit(found("accuracy_minus_fp"), signed, "points")),
        ("against rtn", _with_unit(found("accuracy_minus_rtn"), signed, "points")),
        ("KL to full precision", _with_unit(found("kl"), nats, "nats")),
        ("guessing, no image", _with_unit(found("accuracy_blind"), points, "%")),
        ("images shuffled", _with_unit(found("accuracy_shuffled"), points, "%")),
        ("unreadable answers", _with_unit(found("parse_failures"), points, "%")),
        ("time", clock(answered.seconds)),
        ("files", ", ".join(str(root / f) for f in ("results.md", "results.json", "predictions"))),
    ]
    return [(name, text) for name, text in facts if text]


def _with_unit(rows: Sequence[Row], number: Number, unit: str) -> str:
    return f"{cell(rows, number)} {unit}" if rows else ""
