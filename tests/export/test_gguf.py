"""GGUF files: gguf-py reads back exactly (code - zero point) x scale of every layer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.export import export_gguf
from qvlm_lightning.export.gguf_blocks import block_type, blocks
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.export.base_file import file_names, moved, write_base
from tests.export.making import small_artifact, tiny_artifact, values
from tests.models.conftest import BUILDERS
from tests.models.small.parts import Small

LANGUAGE = {"vision": PartScheme(16, 16), "projector": PartScheme(16, 16)}


def scheme(bits: int, symmetric: bool, group: int | None) -> Scheme:
    return Scheme(
        **LANGUAGE,
        language=PartScheme(bits, 16),
        weight_symmetric=symmetric,
        group_size=group,
        group_fallback="error",
    )


class Grouped(Small):
    """A small LLaVA in bfloat16 whose two query heads share a key head, of whole blocks of 32."""

    def model(self) -> Any:
        return super().model().to(torch.bfloat16)


def grouped() -> Small:
    small = BUILDERS["llava"]()
    small.config.text_config.intermediate_size = 64
    small.config.text_config.hidden_size = 64
    small.config.text_config.head_dim = 32
    small.config.dtype = "bfloat16"
    return Grouped(small.model_type, small.config, small.processor)


def full_precision(kind: str) -> Any:
    if kind == "embedded":
        return Llava(str(WEIGHTS), dtype="bfloat16").load_model()
    return grouped().model()


def artifact_of(kind: str, folder: Path, given: Scheme) -> Any:
    if kind == "embedded":
        return tiny_artifact(folder, given, dtype="bfloat16")
    return small_artifact(folder, grouped(), given)


def read(folder: Path) -> dict[str, np.ndarray]:
    (file,) = folder.glob("*.gguf")
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors
    }


def unequal(artifact: Any, found: dict[str, np.ndarray]) -> list[str]:
    """Return the quantized layers whose values in the file are not ours, in the file's order."""
    names = file_names(artifact.model)
    odd = []
    for layer in artifact.structure.quantized:
        told, heads = names[f"{layer}.weight"]
        ours = values(artifact, layer)
        ours = ours if heads is None else moved(ours, heads)
        if not np.array_equal(found[told].astype(np.float64), ours.numpy()):
            odd.append(layer)
    return odd


CASES = [
    ("embedded", 4, True, None, "Q4_0"),
    ("embedded", 4, False, 32, "Q5_0"),
    pytest.param("embedded", 8, True, 64, "Q8_0", marks=pytest.mark.slow),
    ("grouped", 4, True, 32, "Q4_0"),
    ("grouped", 3, True, 64, "Q4_0"),
    ("grouped", 5, True, 32, "Q5_0"),
    ("grouped", 4, False, None, "Q5_0"),
    ("grouped", 6, False, 64, "Q8_0"),
    ("grouped", 7, False, 32, "Q8_0"),
    ("grouped", 8, True, None, "Q8_0"),
]


@pytest.mark.parametrize(("kind", "bits", "symmetric", "group", "expected"), CASES)
def test_every_layer_is_code_times_scale_to_the_bit(
    tmp_path, kind: str, bits: int, symmetric: bool, group: int | None, expected: str
) -> None:
    artifact = artifact_of(kind, tmp_path / "artifact", scheme(bits, symmetric, group))
    plain = full_precision(kind)
    base = write_base(tmp_path / "base.gguf", plain)
    done = export_gguf(artifact, tmp_path / "out", base)
    found = read(tmp_path / "out")
    assert unequal(artifact, found) == []
    assert done.layers == len(artifact.structure.quantized)
    assert expected in done.schemes[0]
    names = file_names(plain)
    assert set(found) == {told for told, _ in names.values()}
    before = {t.name: t for t in gguf.GGUFReader(base).tensors}
    quantized = {names[f"{layer}.weight"][0] for layer in artifact.structure.quantized}
    (file,) = (tmp_path / "out").glob("*.gguf")
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name in quantized:
            assert tensor.tensor_type.name == expected
        else:
            assert np.array_equal(tensor.data, before[tensor.name].data)


def test_settings_of_the_base_are_kept(tmp_path) -> None:
    artifact = artifact_of("grouped", tmp_path / "artifact", scheme(4, True, 32))
    base = write_base(tmp_path / "base.gguf", full_precision("grouped"))
    export_gguf(artifact, tmp_path / "out", base)
    (file,) = (tmp_path / "out").glob("*.gguf")
    fields = [gguf.GGUFReader(path).fields for path in (base, file)]
    before, after = ({n: f.contents() for n, f in x.items() if n[:4] != "GGUF"} for x in fields)
    assert after.pop("general.file_type") == gguf.LlamaFileType.MOSTLY_Q4_0
    assert after.pop("general.quantization_version") == gguf.GGML_QUANT_VERSION
    assert after == before


def test_rows_in_another_order_are_seen(tmp_path, monkeypatch) -> None:
    """The comparison above can fail: queries and keys left in the order of transformers."""
    artifact = artifact_of("grouped", tmp_path / "artifact", scheme(4, True, 32))
    base = write_base(tmp_path / "base.gguf", full_precision("grouped"))
    monkeypatch.setattr("qvlm_lightning.export.gguf_base.pairwise", lambda value, heads: value)
    export_gguf(artifact, tmp_path / "out", base)
    odd = unequal(artifact, read(tmp_path / "out"))
    assert {name.rpartition(".")[2] for name in odd} == {"q_proj", "k_proj"}


def test_a_norm_that_a_method_changed_is_ours(tmp_path) -> None:
    artifact = artifact_of("grouped", tmp_path / "artifact", scheme(4, True, 32))
    norm = artifact.model.model.language_model.layers[1].input_layernorm
    norm.weight.data[3] = 1.5
    base = write_base(tmp_path / "base.gguf", full_precision("grouped"))
    export_gguf(artifact, tmp_path / "out", base)
    assert read(tmp_path / "out")["blk.1.attn_norm.weight"][3] == 1.5


def test_blocks_by_hand() -> None:
    """A block of each type from steps -8 to 7, -16 to 15 and -128 to 127, scale 1/2."""
    for kind, least in (("Q4_0", -8), ("Q5_0", -16), ("Q8_0", -128)):
        steps = np.linspace(least, -least - 1, 64).round().astype(np.int16).reshape(1, 64)
        scale = np.array([[0.5, 0.25]], dtype=np.float32)
        made = blocks(kind, steps, scale, "layer")
        back = gguf.quants.dequantize(made, gguf.GGMLQuantizationType[kind])
        assert back.ravel().tolist() == [
            step * (0.5 if place < 32 else 0.25) for place, step in enumerate(steps.ravel())
        ]


@pytest.mark.parametrize(
    ("bits", "symmetric"), [(8, True), *((b, s) for b in range(2, 8) for s in (True, False))]
)
def test_a_block_type_holds_all_codes_minus_zero_points(bits: int, symmetric: bool) -> None:
    most = 2 ** (bits - 1) if symmetric else 2**bits - 1
    room = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}
    kind = block_type(bits, symmetric)
    assert most <= room[kind]
    assert all(most > room[k] for k in room if room[k] < room[kind])


REFUSED = {
    "activations": (replace(scheme(4, True, 32), language=PartScheme(4, 8)), "activation_bits: 16"),
    "groups": (scheme(4, True, 16), "is group_size: 32"),
    "8 bits": (scheme(8, False, 32), "weight_symmetric: true, or weight_bits: 7"),
    "no decoder": (
        Scheme(vision=PartScheme(4, 16), projector=PartScheme(4, 16), language=PartScheme(16, 16)),
        "of which this artifact quantizes nothing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gguf_cannot_hold(tmp_path, name: str) -> None:
    given, words = REFUSED[name]
    artifact = artifact_of("grouped", tmp_path / "artifact", given)
    base = write_base(tmp_path / "base.gguf", full_precision("grouped"))
    with pytest.raises(InputError, match=words):
        export_gguf(artifact, tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_scales_of_float32_are_refused(tmp_path) -> None:
    artifact = tiny_artifact(tmp_path / "artifact", scheme(4, True, 32))
    plain = Llava(str(WEIGHTS)).load_model()
    base = write_base(tmp_path / "base.gguf", plain, dtype=np.float32)
    with pytest.raises(InputError, match="cannot hold those of this layer; the nearest that it"):
        export_gguf(artifact, tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_float32_model_with_the_target_gguf(tmp_path, symmetric: bool) -> None:
    given = replace(scheme(4, symmetric, 32), target="gguf")
    artifact = tiny_artifact(tmp_path / "artifact", given)
    plain = Llava(str(WEIGHTS)).load_model()
    base = write_base(tmp_path / "base.gguf", plain, dtype=np.float32)
    export_gguf(artifact, tmp_path / "out", base)
    found = read(tmp_path / "out")
    assert unequal(artifact, found) == []
    name = "model.language_model.layers.0.mlp.up_proj"
    linear = artifact.model.get_submodule(name)
    simulated = linear.quantized_weight().numpy()
    assert np.array_equal(found[file_names(plain)[f"{name}.weight"][0]], simulated)


def test_rows_that_are_no_blocks_are_refused(tmp_path) -> None:
    artifact = small_artifact(tmp_path / "artifact", BUILDERS["llava"](), scheme(4, True, None))
    with pytest.raises(InputError, match="rows of 48 inputs are no whole blocks of 32"):
        export_gguf(artifact, tmp_path / "out", tmp_path / "base.gguf")


@pytest.fixture
def refuse(tmp_path) -> Any:
    """Export with a base that is wrong, and return the sentence."""
    artifact = artifact_of("grouped", tmp_path / "artifact", scheme(4, True, 32))

    def with_base(base: Path) -> str:
        with pytest.raises(InputError) as fault:
            export_gguf(artifact, tmp_path / "out", base)
        assert not (tmp_path / "out").exists()
        return str(fault.value)

    return with_base


def test_a_base_of_another_model(refuse, tmp_path) -> None:
    other = full_precision("grouped")
    other.model.language_model.embed_tokens.weight.data[5, 3] += 1
    assert "its token_embd.weight has other values" in refuse(write_base(tmp_path / "a", other))
    shaped = grouped()
    shaped.config.text_config.vocab_size += 1
    base = write_base(tmp_path / "b", shaped.model())
    assert "token_embd.weight has shape" in refuse(base)
    base = write_base(tmp_path / "c", full_precision("grouped"), blocks=3)
    assert "its block_count is 3, this model's is 2" in refuse(base)


def test_a_base_that_is_no_base(refuse, tmp_path) -> None:
    assert "is no file" in refuse(tmp_path / "nowhere.gguf")
    (tmp_path / "text").write_text("text")
    assert "is no usable GGUF file" in refuse(tmp_path / "text")
    whole = write_base(tmp_path / "whole", full_precision("grouped"))
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:2000])
    assert "is no usable GGUF file" in refuse(tmp_path / "cut")


def test_a_base_that_is_quantized(refuse, tmp_path) -> None:
    artifact = artifact_of("grouped", tmp_path / "again", scheme(4, True, 32))
    base = write_base(tmp_path / "base.gguf", full_precision("grouped"), dtype=np.float32)
    export_gguf(artifact, tmp_path / "first", base)
    (file,) = (tmp_path / "first").glob("*.gguf")
    assert "is quantized already" in refuse(file)
