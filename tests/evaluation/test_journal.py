import errno
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.journal import Journal, Record, differences

ASKED = {"source": "weights", "mode": "official", "stop": []}
WIDTH = 3


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None].expand(-1, WIDTH).contiguous()


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "fp-k1.partial")


def answer(journal, session: int, process: int, *ids: str, at: float = 1.0, keep=True) -> None:
    record = Record(journal, session, process, keep)
    record.add(ids, [f"text of {name}" for name in ids], rows(*(float(i) for i in ids)), at)
    record.close()


def test_answers_of_all_processes_and_sessions_come_back(journal):
    session, note = journal.open(ASKED)
    assert (session, note) == (0, "")
    answer(journal, 0, 0, "2", "0", at=1.5)
    answer(journal, 0, 1, "3", at=2.5)
    session, note = journal.open(ASKED)
    assert (session, note) == (1, "")
    answer(journal, 1, 0, "1", at=4.0)
    assert journal.texts() == {name: f"text of {name}" for name in "0123"}
    assert journal.log_probs(["0", "1", "2", "3"]).equal(rows(0, 1, 2, 3))
    # the slowest process of each session
    assert journal.seconds() == 2.5 + 4.0


def test_a_disk_that_fills_up_keeps_the_earlier_answers(journal, monkeypatch):
    journal.open(ASKED)
    record = Record(journal, 0, 0, True)
    record.add(["0"], ["red"], rows(0), 0.25)
    for name in ("_lines", "_table"):
        file = getattr(record, name)
        full = SimpleNamespace(write=lambda data, file=file: file.write(data[:3]), tell=file.tell)
        monkeypatch.setattr(record, name, full)
    record.add(["1"], ["green"], rows(1), 0.5)  # a write takes what it likes
    assert journal.texts() == {"0": "red", "1": "green"}

    def refuse(data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    record._lines.write = refuse
    with pytest.raises(InputError, match="the disk is full") as fault:
        record.add(["2"], ["blue"], rows(2), 0.75)
    assert repr(str(journal.folder)) in str(fault.value)
    assert journal.texts() == {"0": "red", "1": "green"}
    assert journal.log_probs(["1", "0"]).equal(rows(1, 0))


def test_answers_are_there_as_they_come(journal):
    journal.open(ASKED)
    record = Record(journal, 0, 0, True)
    record.add(["0"], ["red"], rows(0), 0.25)
    (file,) = journal.folder.glob("*.jsonl")
    assert json.loads(file.read_text()) == {"id": "0", "text": "red", "seconds": 0.25}
    assert journal.texts() == {"0": "red"}


def test_an_answer_given_twice_is_read_once(journal):
    journal.open(ASKED)
    answer(journal, 0, 1, "0", "1")
    answer(journal, 1, 0, "1", "2")
    assert list(journal.texts()) == ["0", "1", "2"]
    assert journal.log_probs(["2", "1", "0"]).equal(rows(2, 1, 0))


def test_something_else_that_is_asked_starts_afresh_and_says_why(journal):
    journal.open(ASKED)
    answer(journal, 0, 0, "0")
    session, note = journal.open(ASKED | {"mode": "lmms"})
    assert session == 0
    assert note == (
        "fp-k1: answers of an interrupted evaluation are dropped: mode was 'official', "
        "now it is 'lmms'"
    )
    assert journal.texts() == {}
    assert journal.open(ASKED | {"mode": "lmms"}) == (0, "")


def test_without_answers_there_is_nothing_to_tell(journal):
    journal.open(ASKED)
    assert journal.open(ASKED | {"mode": "lmms"}) == (0, "")


def test_without_log_probabilities_there_is_no_table(journal):
    journal.open(ASKED)
    answer(journal, 0, 0, "0", keep=False)
    assert [p.suffix for p in sorted(journal.folder.iterdir())] == [".jsonl", ".json"]
    assert journal.texts() == {"0": "text of 0"}


def test_nothing_is_left_when_it_is_removed(journal):
    journal.open(ASKED)
    answer(journal, 0, 0, "0")
    journal.remove()
    assert not journal.folder.exists()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_a_killed_process_left_is_read_up_to_there(data):
    """Files cut at any byte: a beginning of the answers, each with its own log-probabilities."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "fp-k1.partial")
        journal.open(ASKED)
        names = [str(i) for i in range(5)]
        record = Record(journal, 0, 0, True)
        for name in names:
            record.add([name], [f"ünï\n{name}"], rows(float(name)), 1.0)
        record.close()
        for ending in (".jsonl", ".f32"):
            (path,) = journal.folder.glob(f"*{ending}")
            whole = path.read_bytes()
            path.write_bytes(whole[: data.draw(st.integers(0, len(whole)), ending)])
        left = journal.texts()
        assert list(left) == names[: len(left)]
        if left:
            assert journal.log_probs(list(left)).equal(rows(*map(float, left)))
        session, _ = journal.open(ASKED)
        answer(journal, session, 0, *names[len(left) :])
        assert sorted(journal.texts()) == names
        assert journal.log_probs(names).equal(rows(*map(float, names)))


def test_zeros_after_a_power_cut_are_no_answer(journal):
    journal.open(ASKED)
    answer(journal, 0, 0, "0", keep=False)
    (path,) = journal.folder.glob("*.jsonl")
    path.write_bytes(path.read_bytes() + bytes(64) + b"\n")
    assert journal.texts() == {"0": "text of 0"}


def test_differences_name_every_key():
    before = {"stop": [], "max_new_tokens": 4, "mode": "official"}
    now = {"stop": ["\n"], "max_new_tokens": 8, "mode": "official"}
    assert differences(before, now) == (
        "stop was [], now it is ['\\n'], max_new_tokens was 4, now it is 8"
    )
    assert differences(before | {"packed": True}, before) == "packed was True, now it is None"
