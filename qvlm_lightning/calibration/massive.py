"""Sites at which single tokens are far larger than the others, and overrides that would help."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from qvlm_lightning.calibration.token_peaks import TokenPeaks
from qvlm_lightning.nn.structure import Site, Structure
from qvlm_lightning.quant.scheme import OFF, Scheme

MASSIVE = 8.0
"""A site is massive if its largest token passes this many times its median token: of the 16 codes
of a 4-bit range over all tokens, half of the tokens then use five at most."""
NAMED = 5
"""Most sites in a warning, and most positions of a site in a report."""


def massive_sites(peaks: TokenPeaks, names: Collection[str]) -> list[str]:
    """Return the sites whose largest token passes ``MASSIVE`` times their median token.

    Args:
        peaks: of the calibration set.
        names: the sites, in order; those that no token reached are passed over.
    """
    reached = set(peaks.sites)
    return [name for name in names if name in reached and peaks.ratio(name) > MASSIVE]


def massive_report(
    structure: Structure,
    scheme: Scheme,
    peaks: TokenPeaks,
    tokens: Mapping[int, Sequence[int]],
    ids: Sequence[str],
    decode: Callable[[int], str],
) -> dict[str, Any]:
    """Return what ``report.json`` says of massive sites; plain values.

    Args:
        structure: the sites.
        scheme: of the run.
        peaks: of the calibration set.
        tokens: sample -> token ids of the decoder, from the first real one.
        ids: names of the samples.
        decode: makes text of a token id.

    Returns:
        ``threshold``; ``sites``: per site ratio, worst, median, activation_bits, sample, position,
        token and token_id (none where tokens are patches), recurring: at which position (as text)
        how many samples have a token above the threshold, the most frequent ones;
        ``proposed_overrides``.
    """
    places = {s.name: (tower, s) for tower, t in structure.towers.items() for s in t.sites}
    sites = {}
    for name in massive_sites(peaks, list(places)):
        tower, site = places[name]
        peak = peaks.peak(name)
        token = tokens[peak.sample][peak.position] if tower == "language" else None
        recurring = list(peaks.recurring(name, MASSIVE).items())[:NAMED]
        sites[name] = {
            "ratio": peak.ratio,
            "worst": peak.worst,
            "median": peak.median,
            "activation_bits": site.quantizer.num_bits,
            "sample": ids[peak.sample],
            "position": peak.position,
            "token": None if token is None else decode(token),
            "token_id": token,
            "recurring": {str(position): count for position, count in recurring},
        }
    proposed = proposed_overrides(structure, scheme, list(sites))
    return {"threshold": MASSIVE, "sites": sites, "proposed_overrides": proposed}


def warning_lines(structure: Structure, scheme: Scheme, peaks: TokenPeaks) -> list[str]:
    """Return what to tell a user about massive sites; nothing where every token has a range of its
    own, or where other widths take care of them.
    """
    if scheme.activation_mode == "dynamic_token":
        return []
    exposed = {s.name: s for s in structure.sites if _exposed(s, structure, scheme)}
    names = sorted(massive_sites(peaks, list(exposed)), key=peaks.ratio, reverse=True)
    if not names:
        return []
    told = ", ".join(f"{name} ({peaks.ratio(name):,.0f} times)" for name in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    decoder = any(site.name in names for site in structure.towers["language"].sites)
    sinks = "scheme.sink: prefix, " if decoder and scheme.sink == "none" else ""
    return [
        f"note: at {len(names)} sites the largest token exceeds the median token by far, and "
        f"{scheme.activation_mode} has one range for both: {told}{more}.",
        "A search of ranges may clip these tokens, which can cost more than the range of all (see "
        f"docs/joined.md). What helps: {sinks}scheme.overrides (report.json proposes some), or "
        "activation_mode: dynamic_token.",
    ]


def proposed_overrides(
    structure: Structure, scheme: Scheme, sites: Collection[str]
) -> dict[str, dict[str, int]]:
    """Return overrides that give sites more activation bits: 8 where they have less, 16 where they
    have 8.

    Sites that have more bits than their part already, or 16, are passed over. Layers that differ
    in the number of their place only share a regular expression, which matches no other layer.

    Args:
        structure: the model's.
        scheme: of the plan or run.
        sites: names of the massive ones.
    """
    grouped: dict[tuple[int, str, str, tuple[str, ...]], list[int]] = {}
    for site in (s for s in structure.sites if s.name in sites):
        if not _exposed(site, structure, scheme):
            continue
        bits = 8 if site.quantizer.num_bits < 8 else OFF
        for (before, number, behind), leaves in _split(site).items():
            grouped.setdefault((bits, before, behind, leaves), []).append(number)
    known = [*structure.quantized, *structure.ignored]
    found = {}
    for (bits, before, behind, leaves), numbers in grouped.items():
        found[_pattern(before, numbers, behind, leaves, known)] = {"activation_bits": bits}
    return found


def _exposed(site: Site, structure: Structure, scheme: Scheme) -> bool:
    """Whether a site's activations are quantized, and no override gave it more bits."""
    part = structure.quantized[next(iter(site.linears))]
    bits = site.quantizer.num_bits
    return bits < OFF and bits <= scheme.part(part).activation_bits


def _split(site: Site) -> dict[tuple[str, int, str], tuple[str, ...]]:
    """Return the Linear layers of a site by (path before the first number, number, path behind it);
    -1 where there is none.
    """
    leaves: dict[tuple[str, int, str], list[str]] = {}
    for name in site.linears:
        parent, _, leaf = name.rpartition(".")
        before, number, behind = parent, "-1", ""
        place = re.search(r"\.(\d+)(?=\.|$)", parent)
        if place:
            before, number, behind = parent[: place.start()], place[1], parent[place.end() :]
        leaves.setdefault((before, int(number), behind), []).append(leaf)
    return {key: tuple(names) for key, names in leaves.items()}


def _pattern(
    before: str, numbers: Sequence[int], behind: str, leaves: Sequence[str], known: Sequence[str]
) -> str:
    """Return the shortest regular expression of whole names that matches the wanted layers alone.

    Args:
        before: path in front of the number.
        numbers: of the layers; [-1] for none.
        behind: path behind the number, with its dot, or nothing.
        leaves: names of the Linear layers below that path.
        known: full names of all modules that may be matched.
    """
    numbered = numbers != [-1]
    middle = f"[.]{_either([str(n) for n in sorted(numbers)])}" if numbered else ""
    end = f"{middle}{_escaped(behind)}[.]{_either([_escaped(leaf) for leaf in leaves])}"
    paths = [f"{before}.{n}{behind}" if numbered else before for n in numbers]
    wanted = {f"{path}.{leaf}" for path in paths for leaf in leaves}
    parts = before.split(".")
    for first in range(len(parts) - 1, -1, -1):
        pattern = _escaped(".".join(parts[first:])) + end
        if {name for name in known if re.search(pattern, name)} == wanted:
            return pattern
    return f"^{_escaped(before)}{end}$"


def _escaped(text: str) -> str:
    """Return a regular expression of a text without a backslash, which the command line's parser
    would double.
    """
    return "".join(c if c.isalnum() or c in "_-" else f"[{c}]" for c in text)


def _either(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"({'|'.join(texts)})"
