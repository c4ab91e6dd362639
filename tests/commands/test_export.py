"""``qvlm export`` from the command line."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from qvlm_lightning.__main__ import main
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.export.base_file import write_base
from tests.export.making import tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """The embedded model in bfloat16, its decoder with symmetric weights of 4 bits."""
    off = PartScheme(16, 16)
    decoder = PartScheme(4, 16)
    scheme = Scheme(off, off, decoder, weight_symmetric=True, group_size=64)
    folder = tmp_path_factory.mktemp("export") / "artifact"
    tiny_artifact(folder, scheme, dtype="bfloat16")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, options)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_compressed_tensors(artifact: Path, tmp_path: Path, capsys) -> None:
    options = ["--format", "compressed-tensors", "--output", str(tmp_path / "out")]
    assert main(["export", str(artifact), *options]) == 0
    said = capsys.readouterr().out
    assert "42 quantized layers" in said
    assert "w4a16, groups of 64, symmetric: pack-quantized" in said
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert "is not empty" in refused(capsys, artifact, *options)


def test_gguf(artifact: Path, tmp_path: Path, capsys) -> None:
    from qvlm_lightning.models.llava import Llava
    from qvlm_lightning.models.tiny import WEIGHTS

    plain = Llava(str(WEIGHTS), dtype="bfloat16").load_model()
    base = write_base(tmp_path / "base.gguf", plain)
    options = ["--format=gguf", f"--base={base}", f"--output={tmp_path / 'out'}"]
    assert main(["export", str(artifact), *options]) == 0
    assert "42 tensors Q4_0" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model-q4_0.gguf"]


def test_a_truncated_artifact(artifact: Path, tmp_path: Path, capsys) -> None:
    broken = shutil.copytree(artifact, tmp_path / "artifact")
    weights = broken / "weights.packed"
    weights.write_bytes(weights.read_bytes()[:-100])
    options = ["--format=compressed-tensors", f"--output={tmp_path / 'out'}"]
    assert "weights.packed is not the file that was" in refused(capsys, broken, *options)
    assert not (tmp_path / "out").exists()
