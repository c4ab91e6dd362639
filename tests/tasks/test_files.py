"""What release files hold, or one sentence about what is wrong with them."""

import gzip
from pathlib import Path

import pytest

from qvlm_lightning.errors import InputError
from qvlm_lightning.tasks.files import read_json, read_json_lines


def test_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"x": 1}', mtime=0))
    (tmp_path / "b.json").write_text('{"x": 1}', encoding="utf-8-sig")
    for name in ("a.json", "a.json.gz", "b.json"):
        assert read_json(tmp_path / name, "") == {"x": 1}


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"x": 1}\n\n{"x": "\u2028"}\r\n')  # a separator of lines to Python alone
    assert read_json_lines(file, "") == [{"x": 1}, {"x": "\u2028"}]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"\xff\xfe", "cannot be read as text"),
        ("a.json", b"[" * 100_000, "is not JSON"),
        ("a.json.gz", b"{}", "cannot be read as text"),
        ("a.json.gz", gzip.compress(b"{}", mtime=0)[:-4], "cannot be read as text"),
        ("b.json", b"", r"there is no file .*a.json'; needed is a folder"),
    ],
)
def test_faults(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    file = tmp_path / ("a.json" if name == "b.json" else name)
    with pytest.raises(InputError, match=message):
        read_json(file, "a folder")


def test_a_bad_line_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"x": 1}\n3')
    with pytest.raises(InputError, match=r"line 2 .* is not a JSON object"):
        read_json_lines(file, "")
