"""How much harder than trained a stress variant of a model was made."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Stress(NamedTuple):
    """The scales of a stress variant; both are 1 where the model is as trained."""

    outlier_scale: float = 1.0
    """Of channels behind norms, which folding the norms undoes."""
    sink_scale: float = 1.0
    """Of the first token in one down projection, which no norm can take back."""

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Stress":
        """Take the scales out of a row or a family's description; a scale that is missing is 1.

        Example:
            >>> Stress.of({"family": "Tiny", "outlier_scale": 10.0})
            Stress(outlier_scale=10.0, sink_scale=1.0)
        """
        return cls(*(float(described.get(name, 1.0)) for name in cls._fields))

    def __bool__(self) -> bool:
        """Return whether this is a stress variant."""
        return self != Stress()

    @property
    def title(self) -> str:
        """What tables write behind a variant; empty where the model is as trained.

        Example:
            >>> Stress(10.0).title, Stress(sink_scale=1000.0).title
            ('stress: norm channels ×10', 'stress: sink ×1000')
        """
        named = zip(("norm channels", "sink"), self, strict=True)
        parts = [f"{what} ×{scale:g}" for what, scale in named if scale != 1]
        return f"stress: {', '.join(parts)}" if parts else ""

    @property
    def in_brackets(self) -> str:
        """The title in brackets, or nothing."""
        return f"({self.title})" if self else ""

    @property
    def name(self) -> str:
        """Part of file names.

        Example:
            >>> Stress(10.0).name, Stress(sink_scale=1000.0).name
            ('k10', 'k1-sink1000')
        """
        sink = "" if self.sink_scale == 1 else f"-sink{self.sink_scale:g}"
        return f"k{self.outlier_scale:g}{sink}"
