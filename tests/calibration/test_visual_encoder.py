"""Invariants V1-V9 of visual-encoder optimisation (docs/paper.md), without a Trainer loop."""

import pytest
import torch

from qvlm_lightning.calibration import LossWeights, VisualEncoderOptimization
from qvlm_lightning.errors import InputError
from qvlm_lightning.losses import entropy_loss
from qvlm_lightning.quant.scheme import Scheme


def test_v1_only_the_listed_parameters_change(family_class, toy_batches, tmp_path, fit):
    family = family_class()
    fresh = VisualEncoderOptimization(family, Scheme.parse("w4a4"), epochs=1)
    before = family.load_model().state_dict()
    module = fit(family, toy_batches, tmp_path, epochs=1)
    for name, value in module.model.state_dict().items():
        if name in before:
            assert torch.equal(value, before[name]), name
    learned = module.quantizer_parameters()
    assert any(not torch.equal(p, torch.ones_like(p)) for p in learned)
    for site in module.structure.towers["language"].sites:
        assert site.quantizer.high_ratio.eq(1).all()
        assert all(x.weight_quantizer.clip_ratio.eq(1).all() for x in site.linears.values())
    assert fresh.epochs == 1


def test_v2_descending_the_entropy_term_lowers_the_weighted_dependency(started):
    module = started(weights=LossWeights(lambda_ent=1.0, lambda_err=0.0))
    parameters = module.quantizer_parameters()
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    values = []
    for _ in range(30):
        ent = module.loss_terms(0, step=0)["ent"]
        optimizer.zero_grad()
        ent.backward()
        optimizer.step()
        values.append(float(ent.detach()))
    assert values[-1] < values[0] - 0.01


def test_v3_jacobian_weights_are_positive_with_mean_one(started):
    module = started()
    weights = [w for tower in module.state.jacobian.values() for w in tower]
    assert min(weights) > 0  # every unit of the toy reaches the output, the first ones too
    assert sum(weights) / len(weights) == pytest.approx(1)
    assert all(isinstance(w, float) for w in weights)


def test_the_error_of_a_half_precision_model_is_summed_in_single(started, monkeypatch):
    module = started()
    module.model.bfloat16()
    module.loss.targets = [[(x, h.bfloat16()) for x, h in b] for b in module.loss.targets]
    types = []
    gradients = torch.autograd.grad

    def spy(error, *args, **options):
        types.append(error.dtype)
        return gradients(error, *args, **options)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    weights = [w for tower in module.loss.jacobian().values() for w in tower]
    assert types == [torch.float32]
    assert sum(weights) / len(weights) == pytest.approx(1)


def test_v4_discretisation_error_is_zero_without_quantizers(started):
    module = started()
    module.structure.enable(False)
    assert module.loss_terms(0, 0)["err"].item() == 0.0
    module.structure.enable(True)
    assert module.loss_terms(0, 0)["err"].item() > 0.0


def test_v5_the_loss_is_linear_in_its_weights(started):
    module = started()
    module.weights = LossWeights(0.0, 0.0, 1.0)
    plain = module.loss_terms(0, 0)
    assert torch.equal(plain["total"], plain["reg"])
    inputs = {
        k: v
        for k, v in module.loss.parts[0][0].items()
        if k in ("input_ids", "attention_mask", "pixel_values")
    }
    reference = module.model(**inputs, labels=module.loss.parts[0][0]["labels"]).loss
    assert plain["reg"].item() == pytest.approx(reference.item(), rel=1e-5)
    module.weights = LossWeights(0.3, 0.7, 2.0)
    terms = {n: x.detach() for n, x in module.loss_terms(0, 0).items()}
    assert float(terms["total"]) == pytest.approx(
        float(terms["reg"] + 0.3 * terms["ent"] + 0.7 * terms["err"])
    )
    module.weights = LossWeights(0.0, 1.0, 0.0)
    visual = module.loss_terms(0, 0)["err"].item()
    module.weights = LossWeights(0.0, 1.0, 4.0)
    both = module.loss_terms(0, 0)["err"].item()
    assert both == pytest.approx(visual + 2 * (float(terms["err"]) - visual), rel=1e-4)


def test_v6_steps_are_epochs_times_batches(family_class, toy_batches, tmp_path, fit):
    module = fit(family_class(), toy_batches, tmp_path, epochs=2)
    assert module.state.steps == 2 * len(toy_batches)
    assert module.state.passes_done == [0, 2]
    assert len(module.state.loss) == 2


def test_v8_gradient_reaches_the_tower_through_a_frozen_decoder(started):
    module = started()
    module.loss_terms(0, 0)["reg"].backward()
    tower = module.structure.towers["vision"].sites
    assert all(float(s.quantizer.high_ratio.grad.abs().sum()) > 0 for s in tower)
    for site in module.structure.towers["language"].sites:
        assert site.quantizer.high_ratio.grad is None
        assert all(
            x.weight.grad is None and x.weight_quantizer.clip_ratio.grad is None
            for x in site.linears.values()
        )


def test_v9_layers_that_cannot_reach_the_output_are_no_units(started):
    module = started()
    assert [u.name for u in module.structure.towers["vision"].units] == [
        f"model.vision_tower.encoder.layers.{i}" for i in (0, 1)
    ]
    assert module.structure.ignored["model.vision_tower.encoder.layers.2.mlp.fc1"].startswith(
        "cannot reach"
    )


def test_the_learned_bounds_of_the_tower_survive_the_final_pass(
    family_class, toy_batches, tmp_path, fit
):
    """The final pass searches the decoder only (A21)."""
    module = fit(family_class(), toy_batches, tmp_path, epochs=1)
    ratios = torch.cat(
        [s.quantizer.high_ratio.reshape(-1) for s in module.structure.towers["vision"].sites]
    )
    assert not ratios.eq(1).all()


@pytest.mark.parametrize("train", ["norms", "lora"])
def test_adapters_leave_the_full_precision_model_alone(started, train):
    module = started(train=train)
    inputs = {
        k: v
        for k, v in module.loss.parts[0][0].items()
        if k in ("input_ids", "attention_mask", "pixel_values")
    }
    with module.structure.only(set()):
        exact = module.model(**inputs).logits
    with torch.no_grad():
        for name, p in module.model.named_parameters():
            if ".adapter." in name:
                p.add_(0.05 * torch.randn_like(p))
    with module.structure.only(set()):
        assert torch.equal(module.model(**inputs).logits, exact)
    module.structure.enable(True)
    assert not torch.allclose(module.model(**inputs).logits, exact)


def test_the_printed_temperature_depends_on_the_scale(started):
    module = started()
    default = module.loss_terms(0, 0)["ent"].item()
    module.loss.edges.temperature = "paper"
    assert module.loss_terms(0, 0)["ent"].item() != default


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"micro_batches": 0}, "micro_batches 0"),
        ({"measure_every_n_epochs": 0}, "measure_every_n_epochs 0"),
    ],
)
def test_impossible_options_are_refused(family_class, options, message):
    with pytest.raises(InputError, match=message):
        VisualEncoderOptimization(family_class(), **options)


def test_nothing_to_learn_is_refused(started):
    with pytest.raises(InputError, match="nothing"):
        started("fp")


def test_entropy_loss_has_a_plus_sign():
    """A16: as printed eq. 8 would raise the entropy."""
    uniform, certain = torch.full((2, 2), 0.25), torch.eye(2) / 2
    assert float(entropy_loss([uniform], torch.ones(1))) > float(
        entropy_loss([certain], torch.ones(1))
    )
