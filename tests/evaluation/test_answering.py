import pytest

from qvlm_lightning.data import TinyVQA
from qvlm_lightning.evaluation.answering import Answering, Prompt
from qvlm_lightning.models import Tiny


@pytest.fixture(scope="module")
def tiny():
    family = Tiny()
    return family.load_model(), family.load_processor()


@pytest.fixture(scope="module")
def samples():
    return TinyVQA(Tiny(), evaluation_count=24).evaluation


def asked(samples, **other) -> list[Prompt]:
    return [Prompt(s.question, s.image, **({"max_new_tokens": 4} | other)) for s in samples]


def test_the_embedded_model_knows_the_answers(tiny, samples):
    texts = Answering(*tiny, batch_size=8)(asked(samples))
    right = [text == sample.answer for text, sample in zip(texts, samples, strict=True)]
    assert sum(right) >= 20  # 97 % of thousands (docs/embedded_model.md)


def test_batches_do_not_matter(tiny, samples):
    questions = asked(samples)
    texts = Answering(*tiny, batch_size=8)(questions)
    assert Answering(*tiny, batch_size=1)(questions) == texts
    back = Answering(*tiny, batch_size=5)(questions[::-1])
    assert back[::-1] == texts


def test_every_question_has_its_own_limits(tiny, samples):
    answering = Answering(*tiny, batch_size=8)
    plain = answering(asked(samples))
    letters = tuple({text[1] for text in plain if len(text) > 1})
    mixed = asked(samples[:12]) + asked(samples[12:], stop=letters)
    texts = answering(mixed)
    assert texts[:12] == plain[:12]
    for text, whole in zip(texts[12:], plain[12:], strict=True):
        assert not set(letters) & set(text)
        assert whole.startswith(text)


def test_nothing_asked_nothing_answered(tiny):
    assert Answering(*tiny)([]) == []
