from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvlm_lightning.data import LazyImage, Sample, TinyVQA
from qvlm_lightning.evaluation.questions import SharedQuestions, digest_questions
from qvlm_lightning.metrics.target import Target
from qvlm_lightning.models import Tiny


class Strategies:
    """One per process; what the main one tells, all hear."""

    def __init__(self, world: int) -> None:
        self.told: object = None
        self.ranks = [self._one(rank, world) for rank in range(world)]

    def _one(self, rank: int, world: int) -> SimpleNamespace:
        def broadcast(value):
            self.told = value if rank == 0 else self.told
            return self.told

        return SimpleNamespace(
            is_global_zero=rank == 0, global_rank=rank, world_size=world, broadcast=broadcast
        )


def shares(count: int, size: int, world: int, done: set[int]) -> list[SharedQuestions]:
    """The questions of every process, some of them answered before."""
    samples = [Sample(str(i), None, "why?") for i in range(count)]
    indices = [list(range(i, min(i + size, count))) for i in range(0, count, size)]
    batches = SimpleNamespace(samples=samples, indices=indices, make=list)
    journal = SimpleNamespace(
        open=lambda asked: (7, "a note"), texts=lambda: {str(i): "so" for i in done}
    )
    made = [SharedQuestions(batches, journal, {}) for _ in range(world)]
    for questions, strategy in zip(made, Strategies(world).ranks, strict=True):
        assert questions.open(strategy) == "a note"
    return made


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 9),
    world=st.integers(1, 5),
    done=st.sets(st.integers(0, 39)),
)
def test_nothing_is_lost_nothing_is_asked_twice(count, size, world, done):
    done = {i for i in done if i < count}
    made = shares(count, size, world, done)
    asked = Counter(i for questions in made for batch in questions for i in batch)
    assert set(asked) | done == set(range(count))
    assert set(asked.values()) <= {1}
    # a batch is answered as it always was, or not at all
    whole = [batch for questions in made for batch in questions if batch]
    assert all(batch in made[0].batches.indices for batch in whole)
    assert all(set(batch) - done for batch in whole)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_take_equally_many_steps(world):
    made = shares(7, 2, world, set())
    assert {len(q) for q in made} == {len(list(q)) for q in made} == {-(-4 // world)}


def test_a_process_has_a_step_even_if_nothing_is_left():
    (questions,) = shares(3, 2, 1, {0, 1, 2})
    assert list(questions) == [{}]


@pytest.fixture(scope="module")
def processor():
    return Tiny().load_processor()


@pytest.fixture(scope="module")
def samples():
    return TinyVQA(Tiny(), evaluation_count=4).evaluation


def test_the_same_questions_have_the_same_digest(processor, samples):
    again = TinyVQA(Tiny(), evaluation_count=4).evaluation
    assert digest_questions(samples, processor) == digest_questions(again, processor)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"question": "who?"},
        {"choices": ("a", "b")},
        {"answer": "other"},
        {"image": None},
        {"target": Target(("other",))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_has_another_digest(processor, samples, change):
    changed = [replace(samples[0], **change), *samples[1:]]
    assert digest_questions(changed, processor) != digest_questions(samples, processor)


def test_another_chat_template_is_another_question(processor, samples):
    class Other:
        def apply_chat_template(self, *args, **kwargs):
            return "Be brief. " + processor.apply_chat_template(*args, **kwargs)

    assert digest_questions(samples, Other()) != digest_questions(samples, processor)


def test_other_pixels_or_bytes_are_other_questions(tmp_path, processor):
    """A resumed evaluation does not add answers about one picture to those about another."""
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        red.save(path)

    def asked(*images) -> str:
        return digest_questions(
            [Sample(str(i), image, "why?") for i, image in enumerate(images)], processor
        )

    before = asked(*map(LazyImage.of, paths))
    assert before == asked(*map(LazyImage.of, paths))
    blue.save(paths[1])
    after = asked(*map(LazyImage.of, paths))
    assert after != before
    assert after != asked(*map(LazyImage.of, reversed(paths)))
    assert len({asked(x) for x in (red, blue, red.resize((2, 8)), red.convert("L"), None)}) == 5
    known = {}
    one = digest_questions([Sample("0", red, "why?")], processor, known)
    assert (one, list(known)) == (asked(red), [id(red)])
