"""Which widths, ranges and modules a calibration uses."""

import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.overrides import checked_overrides, given_to, overrides_suffix
from qvlm_lightning.quant.patterns import check_pattern
from qvlm_lightning.quant.targets import Target, check_parts

ActivationMode = Literal["static_tensor", "static_channel", "dynamic_token"]
GroupFallback = Literal["error", "channel"]
Sink = Literal["none", "bypass", "prefix"]

PARTS = ("vision", "projector", "language")
OFF = 16
WIDTHS = (2, 3, 4, 5, 6, 7, 8, OFF)

_WIDTHS_NAME = re.compile(r"w(\d+)a(\d+)")


@dataclass(frozen=True)
class PartScheme:
    """Widths of one part of the model.

    Raises:
        InputError: a width is none of 2 to 8 and 16.
    """

    weight_bits: int = 4
    """Bits per weight, 2 to 8; 16 leaves the weights alone."""
    activation_bits: int = 4
    """Bits per activation, 2 to 8; 16 leaves the activations alone."""

    def __post_init__(self) -> None:
        for name, bits in asdict(self).items():
            if isinstance(bits, bool) or bits not in WIDTHS:
                raise InputError(f"{name} {bits!r} is not allowed; 2 to 8, or 16 to switch it off")

    @property
    def name(self) -> str:
        """Short name, as in ``w4a16``."""
        return f"w{self.weight_bits}a{self.activation_bits}"


@dataclass(frozen=True)
class Scheme:
    """Widths per part, activation mode, weight groups and what to leave alone.

    Raises:
        InputError: a field holds what it must not.

    Example:
        >>> Scheme.parse("w8a8", activation_mode="dynamic_token").name
        'w8a8'
        >>> Scheme(vision=PartScheme(8, 8)).name
        'vision-w8a8_projector-w4a4_language-w4a4'
        >>> Scheme(overrides={"down_proj": {"activation_bits": 8}}).name
        'w4a4+a8_7ced'
    """

    vision: PartScheme = field(default_factory=PartScheme)
    """Widths of the vision tower."""
    projector: PartScheme = field(default_factory=PartScheme)
    """Widths of the projector."""
    language: PartScheme = field(default_factory=PartScheme)
    """Widths of the decoder."""
    activation_mode: ActivationMode = "static_tensor"
    """``static_tensor``: one stored range per site. ``static_channel``: one per channel in the
    decoder, per position in the tower (the paper). ``dynamic_token``: symmetric, measured on each
    token at run time."""
    weight_symmetric: bool = False
    """Symmetric weight codes around 0 instead of asymmetric ones with a zero point."""
    group_size: int | None = None
    """Inputs that share a weight scale; none: one scale per output channel."""
    group_fallback: GroupFallback = "channel"
    """When the group size does not divide a layer's inputs: one scale per output ``channel`` in
    that layer, with a note, or ``error``. A size that divides no layer is always an error."""
    ignore: tuple[str, ...] = ()
    """Regular expressions, searched in module names; what matches stays in full precision."""
    overrides: dict[str, dict[str, int]] = field(default_factory=dict, hash=False)
    """Widths of single Linear layers: regular expression, searched in full module names, ->
    ``activation_bits`` or ``weight_bits`` or both. Where several patterns match a layer, the last
    that gives a width decides it. In a part at 16 bits it switches the layer on."""
    sink: Sink = "none"
    """What is done about sink tokens of the decoder, which carry massive activations. ``prefix``:
    keys and values of the constant first tokens are stored in full precision, and the tokens stay
    out of ranges. ``bypass``: the first token and recurring ones stay out of ranges and are not
    quantized (simulation only)."""
    target: Target | None = None
    """Format of a later export: what it cannot hold is refused before calibration, and for ``gguf``
    the scales of the decoder's weights are rounded to float16 before codes are computed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ignore", _patterns(self.ignore))
        _one_of("activation_mode", self.activation_mode, get_args(ActivationMode))
        _one_of("group_fallback", self.group_fallback, get_args(GroupFallback))
        _one_of("sink", self.sink, get_args(Sink))
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise InputError(f"group_size {size!r} is not allowed; a positive integer, or none")
        try:
            object.__setattr__(self, "overrides", checked_overrides(self.overrides, WIDTHS))
        except ValueError as error:
            raise InputError(str(error)) from error
        if self.target is not None:
            _one_of("target", self.target, get_args(Target))
            check_parts(self, PARTS)

    @classmethod
    def parse(cls, name: str, **options: Any) -> "Scheme":
        """Make a scheme from a name as :attr:`name` writes it.

        Args:
            name: ``w<bits>a<bits>`` for all parts alike, ``fp``, or ``<part>-w<bits>a<bits>`` of
                all three parts joined by ``_``; what it says of overrides behind a ``+`` must be
                true of those in ``options``.
            options: the other fields.

        Raises:
            InputError: the name cannot be read, a width is not allowed, or the name has overrides
                that are not given.

        Example:
            >>> Scheme.parse("w4a16").language.activation_bits
            16
        """
        widths, plus, behind = name.partition("+")
        told = behind.rpartition("+")[2]
        if told in get_args(Sink):  # sinks come last
            if options.setdefault("sink", told) != told:
                raise InputError(f"scheme {name!r} comes with sink {options['sink']!r}; give one")
            behind = behind.removesuffix(told).removesuffix("+")
        pieces = dict.fromkeys(PARTS, f"w{OFF}a{OFF}" if widths == "fp" else widths)
        if "-" in widths:
            pieces = dict(piece.split("-", 1) for piece in widths.split("_") if "-" in piece)
        found = {part: _WIDTHS_NAME.fullmatch(text) for part, text in pieces.items()}
        if set(found) != set(PARTS) or None in found.values():
            raise InputError(
                f"scheme {name!r} cannot be read; allowed: 'w4a4' and the like, 'fp', or "
                "'vision-w8a8_projector-w8a8_language-w4a4'"
            )
        for part, match in found.items():
            assert match is not None
            options[part] = PartScheme(int(match[1]), int(match[2]))
        scheme = cls(**options)
        if behind and overrides_suffix(scheme.overrides) != f"{plus}{behind}":
            raise InputError(
                f"scheme {name!r} has overrides that its name does not say; give the same ones as "
                f"overrides, or {widths!r} without them"
            )
        return scheme

    @property
    def name(self) -> str:
        """``w4a4`` when the parts agree, ``fp`` when all are off, else one entry per part; with
        overrides ``+``, the widths they give and a short hash of them, as in ``w4a4+a8_7ced``; with
        sinks ``+`` and what is done about them, as in ``w8a8+prefix``.
        """
        names = {part: self.part(part).name for part in PARTS}
        whole = "_".join(f"{part}-{name}" for part, name in names.items())
        if set(names.values()) == {PartScheme(OFF, OFF).name}:
            whole = "fp"
        elif len(set(names.values())) == 1:
            whole = names["language"]
        sinks = "" if self.sink == "none" else f"+{self.sink}"
        return whole + overrides_suffix(self.overrides) + sinks

    def part(self, part: str) -> PartScheme:
        """Return the widths of ``vision``, ``projector`` or ``language``."""
        _one_of("part", part, PARTS)
        widths: PartScheme = getattr(self, part)
        return widths

    def widths(self, part: str, name: str) -> PartScheme:
        """Return the widths of a Linear layer: those of its part, unless overrides give others.

        Args:
            part: ``vision``, ``projector`` or ``language``.
            name: full name of the layer in the model.
        """
        return replace(self.part(part), **given_to(self.overrides, name))

    def weight_groups(self, in_features: int) -> int | None:
        """Return the group size to use for a layer; ``None`` means one scale per output channel.

        Args:
            in_features: inputs of the layer.

        Raises:
            InputError: the group size does not divide the inputs and ``group_fallback`` is
                ``error``.
        """
        if self.group_size is None or in_features % self.group_size == 0:
            return self.group_size
        if self.group_fallback == "channel":
            return None
        raise InputError(
            f"group_size {self.group_size} does not divide {in_features} inputs; choose a divisor, "
            "or group_fallback: channel for one scale per output channel in such layers"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; without overrides and sinks those of a scheme from before there
        were any, so that what was stored then still agrees.
        """
        values = asdict(self) | {"ignore": list(self.ignore)}
        unused = {
            "overrides": not self.overrides,
            "sink": self.sink == "none",
            "target": self.target is None,
        }
        return {n: x for n, x in values.items() if not unused.get(n)}

    def identity(self) -> dict[str, Any]:
        """Return what two runs of one scheme agree on: :meth:`to_dict` with overrides as pairs,
        because their order decides and comparing objects would not see it.
        """
        pairs = [[pattern, dict(bits)] for pattern, bits in self.overrides.items()]
        return self.to_dict() | ({"overrides": pairs} if pairs else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Scheme":
        """Make a scheme from what :meth:`to_dict` returned.

        Raises:
            InputError: an unknown key, or a value that is not allowed.
        """
        known = [f.name for f in fields(cls)]
        _object("the scheme", values)
        for key in values:
            _one_of("scheme key", key, known)
        parts = {}
        for part in (p for p in PARTS if p in values):
            _object(part, values[part])
            for key in values[part]:
                _one_of(f"key of {part}", key, [f.name for f in fields(PartScheme)])
            parts[part] = PartScheme(**values[part])
        return cls(**(values | parts))


def _object(name: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{name} is {values!r}; allowed is an object of names and values")


def _patterns(patterns: Any) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise InputError(
            f"ignore {patterns!r} is one string; allowed is a list of regular expressions"
        )
    for pattern in patterns:
        try:
            check_pattern(pattern)
        except ValueError as error:
            raise InputError(
                f"ignore pattern {pattern!r} is no regular expression: {error}"
            ) from error
    return tuple(patterns)


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        raise InputError(f"{name} {value!r} is not known; allowed: {', '.join(map(repr, allowed))}")
