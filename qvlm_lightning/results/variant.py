"""Variants of a model: which calibration of it answered, and the names that follow from that."""

import re
from dataclasses import dataclass
from typing import Literal

from qvlm_lightning.errors import InputError
from qvlm_lightning.results.stress import Stress

Control = Literal["", "blind", "shuffled"]
_WIDTHS = re.compile(r"\bw\d+a\d+")


@dataclass(frozen=True)
class Variant:
    """Which model answered."""

    model: str
    """Name of the model."""
    method: str = "fp"
    """Calibration method, or ``fp`` for full precision."""
    scheme: str = "fp"
    """Such as ``w4a4``; ``fp``, or for full precision in another floating type ``bf16``."""
    activation_mode: str = "none"
    """Such as ``static_tensor``; ``none`` for full precision."""
    outlier_scale: float = 1.0
    """Above 1: a stress variant with outlier channels behind norms, which folding undoes."""
    seed: int | None = None
    """Calibration seed; None for full precision."""
    label: str = ""
    """Name of its row where several rows have one method, as in an ablation; else empty."""
    sink_scale: float = 1.0
    """Above 1: a stress variant with a massive first token, which no folding undoes."""

    @property
    def stress(self) -> Stress:
        """Both scales."""
        return Stress(self.outlier_scale, self.sink_scale)

    @property
    def row(self) -> str:
        """Name of its row in tables: the label, or the method."""
        return self.label or self.method

    @property
    def name(self) -> str:
        """File name of its predictions on the test split, without ending.

        Example:
            >>> Variant("tiny").name, Variant("tiny", "qvlm", "w4a4", "static_tensor", 10, 1).name
            ('fp-k1', 'qvlm-w4a4-static_tensor-k10-s1')
            >>> Variant("tiny", sink_scale=1000).name
            'fp-k1-sink1000'
            >>> Variant("tiny", scheme="bf16").name
            'fp-bf16-k1'
        """
        parts = [self.row, self.scheme, self.activation_mode]
        if self.is_fp:
            parts = ["fp"] if self.scheme == "fp" else ["fp", self.scheme]
        seed = [] if self.seed is None else [f"s{self.seed}"]
        return "-".join([*parts, self.stress.name, *seed])

    @property
    def is_fp(self) -> bool:
        """Whether this is the model in full precision."""
        return self.method == "fp"

    @property
    def reference(self) -> "Variant":
        """The same model in full precision."""
        return Variant(self.model, **self.stress._asdict())


def file_name(variant: Variant, control: Control = "", split: str = "") -> str:
    """Name the files of a variant's predictions.

    Args:
        variant: which model answered.
        control: which control, if any.
        split: split of the questions; ``test`` is not written.

    Example:
        >>> file_name(Variant("tiny"), "blind"), file_name(Variant("tiny"), split="development")
        ('fp-k1.blind', 'fp-k1-development')
    """
    name = variant.name if split in ("", "test") else f"{variant.name}-{split}"
    return f"{name}.{control}" if control else name


def variant_title(method: str, scheme: str, row: str) -> str:
    """Write a variant's scheme and row for people.

    Args:
        method: calibration method, or ``fp``.
        scheme: see :class:`Variant`.
        row: name of its row.

    Example:
        >>> variant_title("cdm", "w4a4", "random-blocks"), variant_title("fp", "bf16", "fp")
        ('W4A4 random-blocks', 'full precision bf16')
        >>> variant_title("rtn", "vision-w16a16_projector-w16a16_language-w8a8", "rtn")
        'W8A8 language rtn'
    """
    if method == "fp":
        return "full precision" if scheme == "fp" else f"full precision {scheme}"
    return f"{_WIDTHS.sub(lambda found: found[0].upper(), scheme_stem(scheme, ' '))} {row}"


def scheme_stem(scheme: str, between: str = "_") -> str:
    """Shorten the name of a scheme to the parts that are quantized, widths first, as files in
    configs/schemes are named.

    Args:
        scheme: see :class:`Variant`.
        between: what stands between the words.

    Example:
        >>> scheme_stem("w4a4"), scheme_stem("vision-w16a16_projector-w16a16_language-w8a8")
        ('w4a4', 'w8a8_language')
        >>> scheme_stem("vision-w16a16_projector-w16a16_language-w8a8+a16_6d33")
        'w8a8_language+a16_6d33'
    """
    if "-" not in scheme:
        return scheme
    named, plus, more = scheme.partition("+")  # overrides and sinks come behind the parts
    parts = (piece.partition("-") for piece in named.split("_"))
    words = [(widths, part) for part, _, widths in parts if widths != "w16a16"]
    return between.join(word for pair in words for word in pair) + plus + more


def check_label(name: str) -> None:
    """Refuse a row name that cannot be part of a file name.

    Raises:
        InputError: characters other than letters, digits, ``_``, ``.`` and ``-``, or none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"name is {name!r}; allowed are letters, digits, '_', '.' and '-', the first of them a "
            "letter or digit"
        )
