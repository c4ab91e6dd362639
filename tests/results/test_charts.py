"""Pictures: the lengths that are drawn are those of the numbers."""

import re

import pytest

from qvlm_lightning.results import charts
from qvlm_lightning.results.printable import printable


def rectangles(picture: str, kind: str) -> list[dict[str, float]]:
    """Return x, y, width and height of the rectangles of a class."""
    return [
        {name: float(value) for name, value in re.findall(r'\b(x|y|width|height)="([^"]+)"', drawn)}
        for drawn in re.findall(rf'<rect class="{kind}"[^>]*>', picture)
    ]


def texts(picture: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


def test_bars_are_as_long_as_their_values():
    drawn = rectangles(charts.bars([("a", 4.0, "4"), ("b", 1.0, "1"), ("c", 0.0, "0")], "w"), "b")
    long, short, none = (rectangle["width"] for rectangle in drawn)
    assert long == pytest.approx(4 * short, rel=0.01)
    assert none == 1  # seen, at least


def test_edges_inside_a_block_and_between_two_are_told_apart():
    picture = charts.merging([0.5, 0.25, 0.75], 0.4, [[0, 1], [2, 3]], "w")
    inside, between = (rectangles(picture, kind) for kind in "bg")
    assert [len(inside), len(between)] == [2, 1]
    heights = [one["height"] for one in (*inside, *between)]
    assert heights[0] / heights[2] == pytest.approx(2, rel=0.02)
    assert heights[1] / heights[2] == pytest.approx(3, rel=0.02)
    (threshold,) = re.findall(r'<line class="t"[^>]*y1="([^"]+)"', picture)
    foot = inside[0]["y"] + inside[0]["height"]
    assert (foot - float(threshold)) / heights[2] == pytest.approx(0.4 / 0.25, rel=0.02)
    widths = [r["width"] for kind in ("p0", "p1") for r in rectangles(picture, kind)]
    assert widths[0] == widths[1]
    assert [t for t in texts(picture) if t in "0123"][-4:] == ["0", "1", "2", "3"]


def test_what_is_cut_off_is_shaded():
    one = {"from": -4.0, "to": 6.0, "counts": [1, 100, 1, 0, 10], "low": -2.0, "high": 8.0}
    picture = charts.clipping(one, "w", width=240)
    (shaded,) = rectangles(picture, "c")
    assert (shaded["x"], shaded["width"]) == (0, pytest.approx(240 * 2 / 12))
    bars = rectangles(picture, "b")
    assert bars[1]["height"] == max(bar["height"] for bar in bars)
    assert bars[4]["x"] + bars[4]["width"] == pytest.approx(240 * 10 / 12, abs=1)


def test_smaller_percentiles_are_darker():
    values = {("0", "in"): 1.0, ("1", "in"): 0.99, ("2", "in"): 0.98}
    picture = charts.heat_map(["0", "1", "2", "3"], ["in"], values, "w")
    shades = [float(x) for x in re.findall(r'fill-opacity="([^"]+)"', picture)]
    assert shades == sorted(shades)
    assert len(set(shades)) == 3
    assert {"1", "0.99", "0.98"} <= set(texts(picture))


def test_intervals_are_on_one_scale():
    rows = [("a", (-2.0, -4.0, 0.0), "--c1"), ("b", (1.0, 0.0, 2.0), "--c2")]
    picture = charts.intervals(rows, "w", width=312)
    lines = [
        tuple(float(x) for x in found)
        for found in re.findall(r'<line class="i" x1="([^"]+)"[^>]*x2="([^"]+)"', picture)
    ]
    (zero,) = re.findall(r'<line class="t" x1="([^"]+)"', picture)
    assert lines == [(6, float(zero)), (float(zero), 306)]
    assert float(zero) == pytest.approx(6 + 300 * 4 / 6, abs=0.1)
    assert re.findall(r"fill:var\(([^)]*)\)", picture) == ["--c1", "--c2"]


def test_text_in_pictures_is_escaped_and_its_end_kept():
    picture = charts.bars([(f"{'a' * 90}.<b>\x1b", 1.0, "<i>")], 'w"')
    assert "<b>" not in picture
    assert "<i>" not in picture
    assert "\x1b" not in picture
    (label, value) = texts(picture)
    assert label.startswith("…aaa")
    assert label.endswith(".&lt;b&gt;\\x1b")
    assert value == "&lt;i&gt;"
    assert 'aria-label="w&#34;"' in picture


@pytest.mark.parametrize("hidden", ["\x1b", "\n", "\x9b", "\u202e", "\u2066", "\u200b", "\ufeff"])
def test_hidden_characters_become_visible(hidden):
    assert printable(f"a{hidden}b").isprintable()
    assert hidden not in printable(f"a{hidden}b")


def test_other_text_stays():
    assert printable("Größe 5 ≤ 模型 🙂") == "Größe 5 ≤ 模型 🙂"


def test_what_is_cut_off_above_is_shaded_too():
    one = {"from": -4.0, "to": 6.0, "counts": [1, 1], "low": -4.0, "high": 1.0}
    (shaded,) = rectangles(charts.clipping(one, "w", width=200), "c")
    assert (shaded["x"], shaded["width"]) == (100, 100)


def test_a_text_without_end_is_cut_before_it_is_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr("qvlm_lightning.results.printable._visible", lambda c: seen.append(c) or c)
    assert printable("x" * 1_000_000, limit=10) == "x" * 9 + "…"
    assert len(seen) == 11


def test_magnitudes_are_placed_by_their_logarithms():
    rows = [("a", (1.0, 0.1, 10.0), "--c1"), ("b", (0.1, 0.0, 1.0), "--c2")]
    picture = charts.magnitudes(rows, "w", width=212)
    lines = re.findall(r'<line class="i" x1="([^"]+)" y1="[^"]+" x2="([^"]+)"', picture)
    assert [(float(a), float(b)) for a, b in lines] == [(6, 206), (6, 106)], "0 is at the edge"
    dots = re.findall(r'<circle class="i" cx="([^"]+)"', picture)
    assert [float(x) for x in dots] == [106, 6]
    powers = re.findall(r'<line class="a" x1="([^"]+)"', picture)
    assert [float(x) for x in powers] == [6, 106, 206]
    assert texts(picture) == ["0.1", "1", "10", "a: 1", "b: 0.1"]
