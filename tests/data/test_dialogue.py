"""Dialogues of several exchanges: which tokens are answers, whatever the chat template."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from qvlm_lightning.data.collate import IGNORED, collate
from qvlm_lightning.data.dialogue import Turn, answer_spans
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.models import Llava
from qvlm_lightning.models.tiny import WEIGHTS

RED = Image.new("RGB", (16, 16), "red")
TALK = Sample("a", RED, "what color ?", answer="red", further=(("and left of it ?", "a blue one"),))
LONG = Sample(
    "b", None, "why ?", answer="so", further=(("how ?", "thus"), ("when ?", "now and then"))
)
SHORT = Sample("c", RED, "who ?", answer="nobody")

PARTS = (
    "{%% for c in m.content %%}{%% if c.type == 'image' %%}<image>{%% else %%}{{ c.text%s }}"
    "{%% endif %%}{%% endfor %%}"
)
# kind -> template, and what it ends an answer with
TEMPLATES = {
    "nothing ends an answer": (
        "{% for m in messages %}{{ m.role.upper() }}: " + PARTS % "" + " {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "",
    ),
    "a line ends after its mark": (
        "<|start|>system\nBe kind.<|end|>\n"
        "{% for m in messages %}<|start|>{{ m.role }}\n" + PARTS % "" + "<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}",
        "<|end|>",
    ),
    "texts are trimmed": (
        "<s>{% for m in messages %}<|start|>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        + PARTS % " | trim"
        + "<|end|>\n{% endfor %}{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}",
        "<|end|>",
    ),
    "one end for all": (
        "{% for m in messages %}{{ m.role | capitalize }}:{{ '' if m.content[0].type == 'image' "
        "else ' ' }}" + PARTS % "" + "<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}",
        "<|end|>",
    ),
    "the next question follows without a space": (
        "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else ' ASSISTANT: ' }}"
        + PARTS % ""
        + "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}",
        "</s>",
    ),
}


def made_processor(template: str) -> Any:
    """Return a processor whose tokenizer can write any text, an image as four tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<image>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["what color is left of it ? a blue one, and red."] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def labelled(batch: dict[str, torch.Tensor], row: int, processor: Any) -> list[str]:
    """Return the text of every run of labelled tokens, which have to be those of the input."""
    labels, ids = batch["labels"][row].tolist(), batch["input_ids"][row].tolist()
    runs: list[list[int]] = [[]]
    for label, token in zip(labels, ids, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [processor.tokenizer.decode(run).strip() for run in runs if run]


def test_words_of_the_embedded_model():
    processor = Llava(str(WEIGHTS)).load_processor()
    more = (("what color is the square?", "blue"),)
    talk = Sample("a", RED, "what color is the circle?", answer="red", further=more)
    batch = collate([talk], processor, with_answer=True)
    words = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    first = "what color is the circle ? ASSISTANT: red </s>"
    second = "USER: what color is the square ? ASSISTANT: blue </s>"
    assert words[words.index("what") :] == [*first.split(), *second.split()]
    kept = [w for w, x in zip(words, batch["labels"][0].tolist(), strict=True) if x != IGNORED]
    assert kept == ["red", "</s>", "blue", "</s>"]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_answer_and_its_end_are_labelled_and_nothing_else(kind):
    template, end = TEMPLATES[kind]
    processor = made_processor(template)
    batch = collate([TALK, LONG, SHORT], processor, with_answer=True)
    last = end or "</s>"  # as of a single answer
    assert labelled(batch, 0, processor) == [f"red{end}", f"a blue one{last}"]
    assert labelled(batch, 1, processor) == [f"so{end}", f"thus{end}", f"now and then{last}"]
    assert labelled(batch, 2, processor) == ["nobody</s>"]
    image = batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert image.sum(1).tolist() == [4, 0, 4]
    assert (batch["labels"][image] == IGNORED).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_text_is_that_of_the_template(kind):
    template, end = TEMPLATES[kind]
    processor = made_processor(template)
    parts = [[{"type": "image"}, {"type": "text", "text": TALK.question}]]
    parts += [[{"type": "text", "text": text}] for text in (TALK.answer, *TALK.further[0])]
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": c} for r, c in zip(roles, parts, strict=True)]
    text = processor.apply_chat_template(messages, tokenize=False).rstrip()
    ids = processor(text=[text], images=[RED])["input_ids"][0]
    batch = collate([TALK], processor, with_answer=True)
    ending = [] if end else [processor.tokenizer.eos_token_id]
    assert batch["input_ids"][0].tolist() == ids + ending


PROCESSORS = {kind: made_processor(template) for kind, (template, _) in TEMPLATES.items()}
text = st.lists(
    st.sampled_from(["a", "red", "one,", "42", "it.", "é", "?"]), min_size=1, max_size=4
)
exchange = st.tuples(text.map(" ".join), text.map(" ".join))


@settings(max_examples=60)
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(exchange, min_size=2, max_size=5))
def test_whatever_is_said(kind, exchanges):
    (question, answer), *further = exchanges
    sample = Sample("a", None, question, answer=answer, further=tuple(further))
    batch = collate([sample], PROCESSORS[kind], with_answer=True)
    end = TEMPLATES[kind][1]
    answers = [answer for _, answer in exchanges]
    expected = [*(f"{a}{end}" for a in answers[:-1]), f"{answers[-1]}{end or '</s>'}"]
    assert labelled(batch, 0, PROCESSORS[kind]) == expected


def test_generation_asks_the_first_question_only():
    processor = PROCESSORS["nothing ends an answer"]
    alone = Sample("a", RED, TALK.question, answer=TALK.answer)
    asked, expected = (collate([s], processor, with_answer=False) for s in (TALK, alone))
    assert asked.keys() == expected.keys()
    assert all(torch.equal(asked[name], expected[name]) for name in asked)


class Words:
    """A tokenizer of whole words, numbered as they come."""

    def __init__(self):
        self.known = {}

    def __call__(self, texts):
        rows = [[self.known.setdefault(w, len(self.known)) for w in x.split()] for x in texts]
        return {"input_ids": rows}


def test_borders_by_hand():
    """``qa`` begins in a question, ``bc`` in an answer: a token is of the text it ends in."""
    parts = ["<i> q", "<i> qa b </s>", "<i> qa b </s> why", "<i> qa b </s> why so end!"]
    turns = [Turn(*parts[:2], True), Turn(*parts[2:], False)]
    words = Words()
    (row,) = words([parts[-1]])["input_ids"]
    spread = [row[0]] * 3 + row[1:]  # an image of three tokens
    assert answer_spans(TALK, turns, spread, words) == [(3, 6), (7, 9)]
    glued = [Turn("q", "q a b", False), Turn("q a bc", "q a bc so", False)]
    (row,) = words(["q a bc so"])["input_ids"]
    assert answer_spans(TALK, glued, row, words) == [(1, 2), (3, 4)]


def test_other_tokens_than_those_of_the_text_are_refused():
    words = Words()
    turns = [Turn("q", "q a", False), Turn("q a p", "q a p b", False)]
    (row,) = words(["q a p b"])["input_ids"]
    assert answer_spans(TALK, turns, [9, *row], words) == [(2, 3), (4, 5)]
    with pytest.raises(InputError, match=r"dialogue 'a' cannot be told .* other tokens of the who"):
        answer_spans(TALK, turns, row[::-1], words)


LAST = "{% if loop.last or m.role == 'user' %}" + PARTS % "" + "{% endif %}"
THINK = "{% if add_generation_prompt %}assistant: <think>{% endif %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: " + LAST + "\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: " + PARTS % " | upper" + "\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: " + PARTS % "" + "\n{% endfor %}" + THINK,
        "{{ messages | length }}{% for m in messages %}" + PARTS % "" + "\n{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}"
        + PARTS % ""
        + "{% else %}{{ m.content }}"
        "{% endif %}\n{% endfor %}",
    ],
    ids=["drops answers", "changes answers", "starts otherwise", "counts", "knows no parts"],
)
def test_a_template_that_does_not_grow_is_refused(template):
    allowed = r"chat template changes .*; allowed is one exchange \(max_turns: 1\)"
    with pytest.raises(InputError, match=rf"answers of the dialogue 'a' cannot .*{allowed}"):
        collate([TALK], made_processor(template), with_answer=True)
    collate([SHORT], made_processor(template), with_answer=True)
