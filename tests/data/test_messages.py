import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.data.messages import Exchange, read_exchange
from qvlm_lightning.errors import InputError

LAZY = LazyImage.of("a.png")
SEEN = Exchange("What is it?", "A cat.", "a.png")


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content) -> dict:
    return {"role": "assistant", "content": content}


TEXT = {"type": "text", "text": "What is it?"}
ANSWER = assistant([{"type": "text", "text": "A cat."}])


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.png", "question": "What is it?", "answer": " A cat. "},
        {"image": "a.png", "messages": [user("What is it?"), assistant("A cat.")]},
        {"image": "a.png", "messages": [user("<image>\nWhat is it?"), assistant("A cat.")]},
        {"images": ["a.png"], "messages": [user([{"type": "image"}, TEXT]), ANSWER]},
        {"messages": [user([{"type": "image", "image": "a.png"}, TEXT]), ANSWER]},
        {"messages": [user([TEXT, {"type": "image", "path": "a.png", "text": None}]), ANSWER]},
        {"messages": [user([{"type": "image", "url": "a.png", "image": None}, TEXT]), ANSWER]},
        {"messages": [user([{"type": "image_url", "image_url": {"url": "a.png"}}, TEXT]), ANSWER]},
        {"messages": [user([{"type": "image", "image": "a.png", "max_pixels": 9}, TEXT]), ANSWER]},
        {
            "image": "a.png",
            "image_id": 7,
            "file": "b.png",
            "question": "What is it?",
            "answer": "A cat.",
        },
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "What is it?\n<image>"},
                {"from": "gpt", "value": "A cat."},
                {"from": "human", "value": "Really?"},
            ],
        },
        {"question": None, "images": None, "image": "a.png", "messages": [user([TEXT]), ANSWER]},
    ],
)
def test_every_form_says_the_same(row):
    assert read_exchange(row, "here") == SEEN


def test_the_lines_of_the_document_say_the_same():
    document = Path(__file__).parents[2] / "docs" / "your_own_data.md"
    (block,) = re.findall(r"^```json\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    found = [read_exchange(json.loads(line), "here") for line in block.splitlines()]
    bus = Exchange("What color is the bus?", "Red", "images/0001.jpg")
    assert found == [bus] * 4


PNG = base64.b64encode(b"bytes of a file").decode()


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "image": f"data:image/png;base64,{PNG}"},
        {"messages": [user([{"type": "image", "base64": PNG}, TEXT])]},
        {"messages": [user([{"type": "image", "url": f"data:image/png;base64,{PNG}"}, TEXT])]},
        {"messages": [user([{"type": "image", "image": b"bytes of a file"}, TEXT])]},
    ],
)
def test_the_bytes_of_an_image_are_read(row):
    image = read_exchange(row, "line 7").image
    assert image.encoded() == b"bytes of a file"
    assert image.name == "of line 7"


def test_a_file_has_an_address_too():
    row = {"question": "Q", "image": "file:///my/a%20b.png"}
    assert read_exchange(row, "here").image == "/my/a b.png"
    picture = Image.new("RGB", (2, 2))
    assert read_exchange({"question": "Q", "image": picture}, "here").image is picture


LOST = [
    *({"question": "Q", key: "a.png"} for key in ("img", "picture", "image_path", "file_name")),
    {"question": "Q", "photo": LAZY},
    {"question": "Q", "image": None, "photo": LAZY},
    {"question": "Q", "views": ["a.png", "b.png"]},
    {"question": "Q", "encoded": f"data:image/png;base64,{PNG}"},
    {"question": "Q", "image_id": 7},
    {"messages": [user([{"type": "image"}, TEXT])]},
    {"messages": [user([{"type": "image", "text": None, "image": None}, TEXT])]},
    {"messages": [user([{"type": "image", "source": {"data": PNG}}, TEXT])]},
    {"messages": [user([{"type": "image", "image": "a.png"}, {"type": "image"}, TEXT])]},
    {"image": "a.png", "messages": [user([{"type": "image"}, {"type": "image"}, TEXT])]},
    {"messages": [user([{"type": "image", "image_path": "a.png"}, TEXT])]},
    {"messages": [user([TEXT | {"image": "a"}])]},
    {"messages": [user("Q") | {"images": ["a.png"]}]},
    {"conversations": [{"from": "human", "value": "Q", "image": "a.png"}]},
]


@pytest.mark.parametrize("row", LOST, ids=range(len(LOST)))
def test_an_image_is_never_left_out_in_silence(row):
    with pytest.raises(InputError, match=r"^line 7 has .*image.*; name its file as image"):
        read_exchange(row, "line 7")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://host/a.png", "'https://host/a.png'; nothing is fetched from a network"),
        ("s3://bucket/a.png", "nothing is fetched"),
        ("file://host/a.png", "nothing is fetched"),
        ("data:image/png;base64,?", "not in base64"),
    ],
)
def test_an_address_that_is_not_read_is_named(value, words):
    for row in (
        {"question": "Q", "image": value},
        {"messages": [user([{"type": "image", "url": value}, TEXT])]},
    ):
        with pytest.raises(InputError, match=rf"^line 7 has .*{words}"):
            read_exchange(row, "line 7")


def test_what_is_no_image_is_left_alone():
    for row in (
        {"question": "Q", "image": None, "image_id": 7},
        {"question": "Q", "images": [], "image_size": 9},
        {"question": "Q", "img": None, "photo": "", "has_image": False},
        {"question": "Q", "source": "web", "note": "see a.pdf"},
    ):
        assert read_exchange(row, "here") == Exchange("Q")


def test_answer_and_image_are_optional():
    assert read_exchange({"messages": [user("Why?")]}, "here") == Exchange("Why?")
    assert read_exchange({"question": "Why?", "answer": None}, "here") == Exchange("Why?")


TALK = [
    user("<image>\nQ1"),
    assistant("A1"),
    user(" Q2 "),
    assistant([{"type": "text", "text": "A2"}]),
]


@pytest.mark.parametrize(
    ("max_turns", "further"),
    [
        (1, ()),
        (2, (("Q2", "A2"),)),
        (3, (("Q2", "A2"), ("Q3", "A3"))),
        (9, (("Q2", "A2"), ("Q3", "A3"))),
    ],
)
def test_the_first_turns_of_a_dialogue(max_turns, further):
    """The last question has no answer: there is nothing to learn from it."""
    turns = [*TALK, user("Q3"), assistant("A3"), user("Q4")]
    expected = Exchange("Q1", "A1", "a.png", (), further)
    row = {"image": "a.png", "messages": turns}
    assert read_exchange(row, "here", max_turns) == expected
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[t["role"]], "value": t["content"]} for t in turns]
    row = {"image": "a.png", "conversations": said}
    assert read_exchange(row, "here", max_turns) == expected


def test_a_dialogue_ends_before_what_has_no_answer():
    turns = [user("Q1"), assistant("A1"), user("Q2"), assistant(" "), user("Q3"), assistant("A3")]
    assert read_exchange({"messages": turns}, "here", 3) == Exchange("Q1", "A1")
    mute = {"messages": [user("Q1"), assistant(""), *turns[2:]]}
    assert read_exchange(mute, "here", 3) == Exchange("Q1")


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ([assistant("A")], "a message 3 of 'assistant'; allowed is user or human"),
        ([user("Q"), user("Q")], "a message 4 of 'user'; allowed is assistant or gpt"),
        (
            [user([TEXT, {"type": "image", "image": "b.png"}])],
            "an image in message 3; allowed is on",
        ),
        ([user("Look: <image>")], "an image in message 3; allowed is one in the first"),
        ([user("Q"), assistant([{"type": "image", "image": "b.png"}])], "an image in message 4"),
        ([user(" ")], "an empty question as message 3"),
        ([user(3)], "part of type None in a message"),
    ],
)
def test_a_dialogue_that_cannot_be_read_is_named(later, message):
    row = {"messages": [user("Q1"), assistant("A1"), *later]}
    assert read_exchange(row, "line 7") == Exchange("Q1", "A1"), "not looked at"
    with pytest.raises(InputError, match=f"^line 7 .*{message}"):
        read_exchange(row, "line 7", 2)


def test_an_image_of_a_table_is_kept():
    assert read_exchange({"question": "Why?", "image": LAZY}, "here").image is LAZY


def test_choices_want_a_letter():
    row = {"question": "Which?\nA. x\nB. y", "choices": ["x", "y"]}
    assert read_exchange(row | {"answer": "B"}, "here").choices == ("x", "y")
    assert read_exchange(row, "here").answer == ""
    for answer in ("y", "C", "AB"):
        with pytest.raises(InputError, match=f"answer '{answer}'; allowed are the letters A to B"):
            read_exchange(row | {"answer": answer}, "here")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "has nothing; needed is messages, conversations, or question"),
        ({"text": "x"}, "has text; needed is messages"),
        ({"question": 3}, "has question; needed is"),
        ({"question": " "}, "empty question"),
        ({"question": "Q", "answer": 3}, "answer of type int"),
        ({"question": "Q", "answer": 0}, "answer of type int"),
        ({"question": "Q", "answer": False}, "answer of type bool"),
        ({"question": "Q", "answer": []}, "answer of type list"),
        ({"question": "Q", "choices": 0}, "choices that are no list of texts"),
        ({"question": "Q", "choices": True}, "choices that are no list of texts"),
        ({"question": "Q", "image": 3}, "image of type int"),
        ({"question": "Q", "images": ["a", "b"]}, "2 images; allowed is one"),
        ({"question": "<image> Q"}, "<image> in its text, but no image"),
        ({"messages": []}, "no list of messages"),
        ({"messages": "Q"}, "no list of messages"),
        ({"messages": ["Q"]}, "without 'role' and 'content'"),
        ({"messages": [user(None)]}, "part of type None"),
        ({"messages": [user([{"type": "video"}])]}, "part of type 'video'"),
        ({"messages": [{"role": "system", "content": "x"}]}, "'system'; .* into the question"),
        ({"messages": [assistant("x")]}, "begins with a message of 'assistant'"),
        ({"messages": [user("Q"), user("Q")]}, "second message of 'user'"),
        (
            {"messages": [user("Q"), assistant([{"type": "image", "image": "a.png"}])]},
            "answers with an image",
        ),
    ],
)
def test_what_cannot_be_read_is_named(row, message):
    with pytest.raises(InputError, match=f"^line 7 .*{message}"):
        read_exchange(row, "line 7")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image", "from", "value"]), inner
        )
    ),
    max_leaves=8,
)
keys = st.sampled_from(
    ["messages", "conversations", "question", "answer", "image", "images", "choices"]
)


@given(st.dictionaries(keys, values, max_size=4), st.integers(1, 3))
def test_arbitrary_json_is_read_or_refused_in_a_sentence(row, max_turns):
    try:
        found = read_exchange(row, "here", max_turns)
    except InputError:
        return
    assert found.question
    assert found.image is None or isinstance(found.image, str)
    assert all(question and answer for question, answer in found.further)
