"""The report: whole, self-contained, safe, small, and the same every time."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.results.compare import compare
from qvlm_lightning.results.compare_examples import Changes, Pictures, changed_examples
from qvlm_lightning.results.compare_figure import (
    MOST_GROUPS,
    colours,
    difference_figure,
    group_figure,
)
from qvlm_lightning.results.compare_tables import comparison_grids
from qvlm_lightning.results.entries import Entry
from qvlm_lightning.results.html import comparison_html

VOID = {"meta", "img", "br", "link"}


@pytest.fixture
def comparison(answered):
    full = answered("fp", "red", "<b>blue</b>", "A", "B", answers=["red", "<b>blue</b>", "A", "B"])
    small = answered("rtn", "red", "no & no", "C", "", answers=full.answers, shift=1.0)
    (found,) = compare([Entry("full", full, "x"), Entry("small <i>", small, "y")])
    return found


@pytest.fixture
def samples() -> dict[str, Sample]:
    image = Image.new("RGB", (600, 300), "teal")
    return {f"q{i}": Sample(f"q{i}", image, f"Which colour <{i}>?") for i in range(4)}


def changes(comparison, samples, count=6) -> Changes:
    (other,) = comparison.others
    return changed_examples(comparison, other, samples, Pictures(), count)


class Balanced(HTMLParser):
    """Checks that every tag is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_file_needs_nothing_else(comparison, samples):
    text = comparison_html(
        [comparison], {comparison.name: {"small <i>": changes(comparison, samples)}}
    )
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.sources
    # the empty icon: browsers would ask the server for one
    assert all(s == "data:," or s.startswith("data:image/") for s in parser.sources)
    assert any(source != "data:," for source in parser.sources)
    assert "://" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert "<script" not in text
    assert len(text) < 1_000_000


def test_what_models_and_data_say_is_text_and_not_markup(comparison, samples):
    text = comparison_html(
        [comparison], {comparison.name: {"small <i>": changes(comparison, samples)}}
    )
    assert "&lt;b&gt;blue&lt;/b&gt;" in text
    assert "no &amp; no" in text
    assert "Which colour &lt;1&gt;?" in text
    assert "small &lt;i&gt;" in text
    assert "<b>" not in text
    assert "<i>" not in text


def test_the_same_comparison_gives_the_same_file(comparison, samples):
    files = {
        comparison_html(
            [comparison], {comparison.name: {"small <i>": changes(comparison, samples)}}
        )
        for _ in range(2)
    }
    assert len(files) == 1


def test_examples_are_the_answers_that_changed(comparison, samples):
    found = changes(comparison, samples)
    assert [e.id for e in found.lost] == ["q1", "q2", "q3"]
    assert found.won == []
    lost = found.lost[1]
    assert (lost.expected, lost.before, lost.after) == ("A", ("A", 100), ("C", 0))
    assert lost.question == "Which colour <2>?"
    assert lost.picture.startswith("data:image/jpeg;base64,")
    assert len(changes(comparison, samples, count=2).lost) == 2
    assert changes(comparison, samples, count=0) == Changes([], [])


def test_examples_without_the_data_still_tell_the_answers(comparison):
    (first, *_) = changes(comparison, {}).lost
    assert (first.question, first.picture) == ("", "")
    assert first.after == ("no & no", 0)


def test_pictures_stop_when_the_report_is_full():
    picture = Pictures(limit=2000)
    small = Image.new("RGB", (32, 32), "red")
    first = picture(small)
    assert first.startswith("data:image/png;base64,")
    assert picture(Image.effect_noise((256, 256), 90)) == ""
    assert picture(small) == ""
    assert Pictures()(None) == ""


def test_a_picture_that_is_gone_is_left_out(tmp_path):
    assert Pictures()(LazyImage.of(tmp_path / "gone.png")) == ""


def test_tables_leave_out_what_nobody_has(answered):
    alone = compare(
        [Entry("full", answered("fp", scores={"overall": 1.0, "kind/a": 2.0, "unparsed": 0}), "x")]
    )[0]
    main, groups = comparison_grids(alone)
    assert main.header == ["model", "score %", "parse failures %", "n"]
    assert groups.header == ["group", "n", "full"]
    assert difference_figure([alone]) is None


def test_the_benchmarks_own_figures_are_a_table(answered):
    scores = {
        "overall": 50.0,
        "unparsed": 1,
        "f1": 85.954,
        "kind/a": 1.0,
        "pairs": 12,
        "auroc": None,
    }
    found = compare([Entry("full", answered("fp", scores=scores), "x")])[0]
    _, own, _ = comparison_grids(found)
    assert own.header == ["model", "overall", "f1", "pairs", "auroc"]
    assert own.rows == [["full", "50.00", "85.95", "12", "–"]]


def test_only_the_largest_groups_are_drawn(answered):
    n = MOST_GROUPS + 6
    groups = [[f"g/{i:02d}"] for i in range(n) for _ in range(1 + (i >= 6))]
    count = len(groups)
    fields = {
        **{"ids": [str(i) for i in range(count)], "texts": ["x"] * count, "answers": ["x"] * count},
        **{"choices": [0] * count, "families": [""] * count, "groups": groups, "log_probs": None},
    }
    found = compare([Entry("full", answered("fp", **fields), "x")])[0]
    figure = group_figure(found, colours([found]))
    names = re.findall(r"<text [^>]*>(\w[^<]*n=[^<]*)</text>", figure)
    assert len(names) == 1 + MOST_GROUPS
    assert names[0] == f"overall  (n={count})"
    assert names[1] == "g/06  (n=2)"


def test_every_model_has_one_colour(comparison):
    palette = colours([comparison])
    assert list(palette) == ["full", "small <i>"]
    assert len(set(palette.values())) == 2


def test_of_clusters_the_changed_questions_are_counted(answered, samples):
    clusters = ["a", "a", "a", "b"]
    full = answered("fp", "red", "blue", "A", "B", answers=["red", "blue", "A", "B"])
    small = answered("rtn", "red", "no", "C", "B", answers=full.answers, shift=1.0)
    for made in (full, small):
        made.clusters = clusters
    (found,) = compare([Entry("full", full, "x"), Entry("small", small, "y")])
    assert found.find("difference", "small")["lost"] == 1
    text = comparison_html([found], {found.name: {"small": changes(found, samples, count=1)}})
    assert "1 of the questions it lost against full" in text
    assert "(drawn at random; 2 in all)" in text
