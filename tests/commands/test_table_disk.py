from pathlib import Path

import pytest

from qvlm_lightning.commands._table_disk import share_weights
from qvlm_lightning.weights.exported import WEIGHTS


@pytest.fixture
def artifacts(tmp_path) -> list[Path]:
    """Artifacts of equal weights, and one of others."""
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder, content in zip(folders, (b"equal", b"equal", b"learn"), strict=True):
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(content)
    return folders


def test_equal_weights_are_kept_once(artifacts):
    first, second, other = (folder / WEIGHTS for folder in artifacts)
    assert share_weights(artifacts[1], artifacts)
    assert second.samefile(first)
    assert second.read_bytes() == b"equal"
    assert first.stat().st_nlink == 2
    assert not share_weights(artifacts[2], artifacts)
    assert other.stat().st_nlink == 1
    assert other.read_bytes() == b"learn"
    # a second time there is nothing to do
    assert share_weights(artifacts[1], artifacts)
    assert first.stat().st_nlink == 2


def test_an_artifact_alone_or_without_weights_is_left_as_it_is(artifacts, tmp_path):
    assert not share_weights(artifacts[0], [artifacts[0], tmp_path / "none"])
    (artifacts[0] / WEIGHTS).unlink()
    assert not share_weights(artifacts[0], artifacts)


def test_a_disk_without_links_keeps_both(artifacts, monkeypatch):
    def refuse(*paths) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    assert not share_weights(artifacts[1], artifacts)
    assert (artifacts[1] / WEIGHTS).read_bytes() == b"equal"
    assert not list(artifacts[1].glob(".*"))
