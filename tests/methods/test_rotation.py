"""Rotations before a calibration: kept, saved, resumed, combined; and what is refused."""

from pathlib import Path

import pytest
import torch

from qvlm_lightning.artifact import load_artifact, save_artifact
from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.samples import model_inputs
from qvlm_lightning.methods import (
    GPTQ,
    AdaRound,
    Chain,
    LearnedRounding,
    LearnedTransforms,
    LeastSquares,
    ObservedRanges,
    Rotation,
    SmoothQuant,
)
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.rotation import _against
from qvlm_lightning.models.wiring import Attention, Projection
from qvlm_lightning.nn.head_rotation import heads_rotated
from qvlm_lightning.nn.online_transform import OnlineTransform
from qvlm_lightning.nn.parameters import made
from qvlm_lightning.quant.scheme import Scheme
from tests.calibration.conftest import InFolder

TOWERS = ["vision", "projector", "language"]
CPU = torch.device("cpu")


def logits(calibrator: Calibrator, quantized: bool) -> torch.Tensor:
    with torch.no_grad(), calibrator.structure.only(set(TOWERS) if quantized else set()):
        out: torch.Tensor = calibrator.model(**model_inputs(calibrator.batches[0], CPU)).logits
        return out


def prepared(opened, folder, method: Method, mode: str = "dynamic_token", bits: str = "w4a4"):
    calibrator = opened(folder, False, Scheme.parse(bits, activation_mode=mode))
    calibrator.prepare(method)
    calibrator.collect()
    return calibrator


METHODS = {
    "rotation": Rotation,
    "online": lambda: Rotation(residual=False, heads=False, online="all"),
    "gptq": lambda: Chain([Rotation(), GPTQ()]),
    "transforms": lambda: LearnedTransforms(steps=2),
    "factors": lambda: LearnedTransforms(steps=2, full_width=1),
    "observed": lambda: Chain(
        [LearnedTransforms(steps=2, ranges=LeastSquares()), GPTQ(ranges=ObservedRanges())]
    ),
    "rounding": lambda: LearnedRounding(steps=2),
    "adaround": lambda: AdaRound(steps=2, lr=0.1),
    "all": lambda: Chain([Rotation(), LearnedTransforms(steps=2), LearnedRounding(steps=2)]),
}


@pytest.mark.parametrize("mode", ["dynamic_token", "static_tensor"])
@pytest.mark.parametrize("method", METHODS)
def test_an_artifact_is_the_calibrated_model(method, mode, opened, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(InFolder, "load_processor", lambda self: NoProcessor())
    plain = opened(folder, False)
    made = METHODS[method]()
    calibrator = prepared(opened, folder, made, mode)
    full = logits(calibrator, quantized=False)
    assert torch.allclose(full, logits(plain, quantized=False), atol=1e-4)
    calibrator.search(TOWERS, made, "a")
    assert torch.equal(logits(calibrator, quantized=False), full)
    expected = logits(calibrator, quantized=True)
    calibrator.structure.enable(True)
    said = {"scheme": calibrator.scheme.to_dict(), "read_by": "tests.calibration.conftest.InFolder"}
    save_artifact(tmp_path / "artifact", calibrator.model, NoProcessor(), said)
    artifact = load_artifact(tmp_path / "artifact", InFolder)
    with torch.no_grad():
        found = artifact.model(**model_inputs(calibrator.batches[0], CPU)).logits
    assert torch.equal(found, expected)
    transforms = [s.name for s in artifact.structure.sites if s.transform is not None]
    assert bool(transforms) == (method not in ("rounding", "adaround"))


class NoProcessor:
    def save_pretrained(self, folder: Path) -> None:
        """Nothing to save."""


@pytest.mark.parametrize("known", [0, 1, 3])
def test_a_resumed_search_ends_with_the_same_bytes(known, opened, folder, tmp_path):
    made = METHODS["all"]
    runs = []
    for _ in range(2):
        from qvlm_lightning.calibration.decisions import Decisions

        calibrator = prepared(opened, folder, made())
        calibrator.blocks.decisions = Decisions(tmp_path)
        calibrator.search(TOWERS, made(), "a")
        calibrator.structure.enable(True)
        runs.append({n: x.clone() for n, x in calibrator.model.state_dict().items()})
        for path in sorted(tmp_path.glob("a-*.safetensors"))[known:]:
            path.unlink()
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(x, runs[1][n]) or x.isnan().all() for n, x in runs[0].items())


@pytest.mark.parametrize("method", ["transforms", "rounding", "adaround", "factors"])
@pytest.mark.parametrize("mode", ["dynamic_token", "static_tensor"])
def test_learning_lowers_j_and_never_ends_above_its_start(method, mode, opened, folder):
    made = METHODS[method]()
    made.steps = 8
    calibrator = prepared(opened, folder, made, mode)
    calibrator.search(TOWERS, made, "a")
    pairs = [(o["start"], o[made.name]) for o in calibrator.state.objective]
    assert all(after <= before for before, after in pairs)
    assert any(after < 0.999 * before for before, after in pairs)


def test_learned_weights_lie_on_their_grids(opened, folder):
    made = METHODS["all"]()
    calibrator = prepared(opened, folder, made)
    calibrator.search(TOWERS, made, "a")
    calibrator.structure.enable(True)
    for site in calibrator.structure.sites:
        for linear in site.linears.values():
            scale, zero_point = linear.weight_quantizer.qparams(linear.weight)
            codes = linear.weight_quantizer.codes(linear.weight)
            assert torch.allclose((codes - zero_point) * scale, linear.weight, atol=1e-6)


def test_only_sites_that_nothing_reaches_get_an_online_rotation(opened, folder):
    calibrator = prepared(opened, folder, Rotation())
    found = {
        s.name.rpartition(".")[2]
        for s in calibrator.structure.sites
        if s.transform is not None and "language" in s.name
    }
    assert found == {"down_in"}
    assert any("online rotations" in note for note in calibrator.structure.notes)
    weights_only = prepared(opened, folder, Rotation(), bits="w4a16")
    assert all(site.transform is None for site in weights_only.structure.sites)


def test_the_seed_draws_other_rotations(opened, folder):
    models = [prepared(opened, folder, Rotation(seed=seed)).model for seed in (0, 0, 1)]
    one, same, other = (dict(m.named_parameters()) for m in models)
    assert all(torch.equal(x, same[n]) for n, x in one.items())
    assert not all(torch.equal(x, other[n]) for n, x in one.items())


def test_a_fold_leaves_a_site_alone_whose_channels_are_mixed(opened, folder):
    made = Chain([Rotation(online="all"), SmoothQuant()])
    calibrator = prepared(opened, folder, made)
    before = logits(calibrator, quantized=False)
    calibrator.search(TOWERS, made, "a")
    assert not calibrator.structure.changes
    assert torch.equal(logits(calibrator, quantized=False), before)


@pytest.mark.parametrize("rows", [None, (4, 12)])
def test_values_of_grouped_heads_are_rotated(rows):
    """Two heads of values for four of queries, size 4; a fused projection has other rows before."""
    generator = torch.Generator().manual_seed(0)
    first, count, size, heads, inputs = (rows or (0, 8))[0], 8, 4, 4, 5
    total = first + count + (3 if rows else 0)
    weights = {
        "l.v.weight": torch.randn(total, inputs, generator=generator),
        "l.v.bias": torch.randn(total, generator=generator),
        "l.o.weight": torch.randn(6, heads * size, generator=generator),
    }
    module = torch.nn.Linear(1, 1)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
    attention = Attention(
        Projection("q"), Projection("k"), Projection("v", rows), "o", heads, 2, size
    )
    changed = made(heads_rotated(lambda _: module, weights.__getitem__, "l", attention, turn))
    x = torch.randn(inputs, generator=generator)

    def outputs(given):
        values = given["l.v.weight"] @ x + given["l.v.bias"]
        read = []
        for head in range(heads):
            start = first + head // 2 * size
            read.append(values[start : start + size] * (head + 1))  # what an attention adds up
        rest = torch.cat([values[:first], values[first + count :]])
        return given["l.o.weight"] @ torch.cat(read), rest

    before, after = outputs(weights), outputs(weights | changed)
    assert torch.allclose(before[0], after[0], atol=1e-4)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(weights["l.o.weight"], changed["l.o.weight"], atol=1e-2)
    expected = weights["l.v.weight"][first : first + size].double()
    assert torch.allclose(
        changed["l.v.weight"][first : first + size].double(), turn.T @ expected, atol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Rotation(online="some"), "allowed: 'none', 'needed', 'all'"),
        (lambda: Rotation(False, False, "none"), "a rotation of nothing"),
        (lambda: Chain([GPTQ(), Rotation()]), "quarot cannot follow gptq"),
        (lambda: Chain([Rotation(), Rotation()]), "quarot cannot follow quarot"),
        (lambda: Chain([LearnedTransforms(), Rotation()]), "quarot cannot follow flatquant"),
        (lambda: LearnedTransforms(steps=0), "steps 0 is not allowed"),
        (lambda: LearnedTransforms(lr=0.0), "lr 0.0 and clip_lr"),
        (lambda: LearnedRounding(steps=0), "steps 0 is not allowed"),
    ],
)
def test_what_cannot_work_is_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_schemes_that_leave_nothing_to_learn_are_refused():
    with pytest.raises(InputError, match="flatquant makes activations easier"):
        LearnedTransforms().check(Scheme.parse("w4a16"))
    with pytest.raises(InputError, match="signround decides quantized weights"):
        LearnedRounding().check(Scheme.parse("w16a4"))


def test_percentiles_from_before_a_transform_are_refused():
    static = Scheme.parse("w4a4", activation_mode="static_tensor")
    behind = Chain([LearnedTransforms(), GPTQ(ranges=LeastSquares())])
    with pytest.raises(InputError, match="were tabulated before flatquant"):
        behind.check(static)
    behind.check(Scheme.parse("w4a4", activation_mode="dynamic_token"))
    Chain([LearnedTransforms(ranges=LeastSquares()), GPTQ()]).check(static)
    Chain([LearnedTransforms(), GPTQ(ranges=ObservedRanges())]).check(static)
    with pytest.raises(InputError, match="ranges is gptq, which changes weights"):
        LearnedTransforms(ranges=GPTQ())


def test_a_target_without_a_place_for_transforms_is_refused():
    whole = Scheme.parse("w8a8", activation_mode="dynamic_token", target="compressed-tensors")
    with pytest.raises(InputError, match="cannot hold; the nearest that it holds is online: none"):
        Rotation().check(whole)
    with pytest.raises(InputError, match="method quarot with online: none"):
        LearnedTransforms().check(whole)
    Rotation(online="none").check(whole)
    weights = Scheme.parse("w4a16", target="compressed-tensors")
    Rotation().check(weights)
    with pytest.raises(InputError, match="online: none"):
        Rotation(online="all").check(weights)


def test_an_online_rotation_goes_where_the_weight_is():
    """A device without values stands for a GPU."""
    transform = OnlineTransform(torch.eye(2), torch.eye(4))
    weight = torch.ones(3, 8, device="meta")
    assert _against(transform, lambda name: {"a.weight": weight}[name], "a.weight").is_meta
    assert transform.left.is_meta
    assert transform.right.is_meta
