"""Ratios of gradients between vision and text (MBQ), against plain loops."""

import pytest
import torch
import torch.nn.functional as F

from qvlm_lightning.calibration.modality_gradients import modality_gradients
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import MinMax, ModalityBalance
from qvlm_lightning.models.family import ANSWER, PROMPT, VISION
from qvlm_lightning.quant.scheme import Scheme
from tests.calibration.experts.conftest import calibrator  # noqa: F401
from tests.methods.test_site_statistics import block_of

PLACE = "model.language_model.layers"
SIZES = {
    f"{PLACE}.0.mlp": {"vision": 1.0, "prompt": 9.0, "answer": 4.0, "text": 2.0},
    f"{PLACE}.1.mlp": {"vision": 6.0, "prompt": 9.0, "answer": 4.0, "text": 2.0},
    f"{PLACE}.2.mlp": {"vision": 4.0, "prompt": 9.0, "answer": 4.0, "text": 2.0},
    f"{PLACE}.2.mlp.down_proj": {"vision": 90.0, "prompt": 9.0, "answer": 4.0, "text": 2.0},
}


def test_the_ratio_is_vision_by_text():
    kind, mask = torch.tensor([[VISION, PROMPT, ANSWER]]), torch.tensor([[True, True, True]])
    weights = ModalityBalance().at(SIZES, f"{PLACE}.1.mlp")
    assert weights(kind, mask).tolist() == [[3.0, 1.0, 1.0]]
    weights = ModalityBalance(text="answer").at(SIZES, f"{PLACE}.1.mlp")
    assert weights(kind, mask).tolist() == [[1.5, 0.0, 1.0]]


def test_the_floor_is_the_median_of_the_same_module_of_all_layers():
    balance = ModalityBalance(floor="median")
    assert balance.ratio(SIZES, f"{PLACE}.0.mlp") == 2.0
    assert balance.ratio(SIZES, f"{PLACE}.1.mlp") == 3.0
    assert ModalityBalance().ratio(SIZES, f"{PLACE}.0.mlp") == 0.5


def test_impossible_balances_are_refused():
    with pytest.raises(InputError, match="allowed: 'all', 'answer'"):
        ModalityBalance(text="prompt")
    with pytest.raises(InputError, match="allowed: 'none', 'median'"):
        ModalityBalance(floor="mean")
    nothing = {"x": dict.fromkeys(("vision", "prompt", "answer", "text"), 0.0)}
    with pytest.raises(InputError, match="no modality ratio"):
        ModalityBalance().ratio(nothing, "x")


def plain_gradients(model, batch, kind, module):
    """Mean |gradient| per kind and sample at a module's output: one sample after another."""
    found, images = {"vision": [], "prompt": [], "answer": [], "text": []}, 0
    of = {"vision": [VISION], "prompt": [PROMPT], "answer": [ANSWER], "text": [PROMPT, ANSWER]}
    for row in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][row].sum())
        given = {"input_ids": batch["input_ids"][row : row + 1, :length]}
        if bool(batch["has_image"][row]):
            given["pixel_values"] = batch["pixel_values"][images : images + 1]
            images += 1
        caught = []

        def hook(_, args, output, caught=caught):
            output = output[0] if isinstance(output, tuple) else output
            start = output.detach().requires_grad_(True)
            caught.append(start)
            return start

        def hook_tuple(_, args, output, caught=caught):
            if not isinstance(output, tuple):
                return hook(_, args, output)
            return (hook(_, args, output), *output[1:])

        handle = module.register_forward_hook(hook_tuple)
        logits = model(**given).logits[0]
        handle.remove()
        labels = batch["labels"][row, :length]
        losses = [
            F.cross_entropy(logits[t], labels[t + 1])
            for t in range(length - 1)
            if labels[t + 1] != -100
        ]
        (gradient,) = torch.autograd.grad(sum(losses) / len(losses), caught)
        for name, kinds in of.items():
            sizes = [
                gradient[0, t].abs().mean() for t in range(length) if int(kind[row, t]) in kinds
            ]
            if sizes:
                found[name].append(float(sum(sizes) / len(sizes)))
    return found


@pytest.mark.parametrize("name", ["layers.1", "layers.1.self_attn", "layers.2.mlp.down_proj"])
def test_gradients_are_those_of_one_sample_after_another(calibrated, toy_batches, name):
    started = calibrated()
    full = f"model.language_model.{name}"
    started.structure.enable(False)
    expected = {"vision": [], "prompt": [], "answer": [], "text": []}
    for batch in toy_batches:
        kind = started.family.token_kind(batch)
        module = started.model.get_submodule(full)
        for which, sizes in plain_gradients(started.model, batch, kind, module).items():
            expected[which] += sizes
    started.structure.enable(True)
    tower = started.structure.towers["language"]
    found = modality_gradients(started.passes, tower, toy_batches, started.family)
    for which, sizes in expected.items():
        assert found[full][which] == pytest.approx(sum(sizes) / len(sizes), rel=1e-4)
    assert all(started.structure.enabled().values())


def test_a_streamed_model_has_the_same_gradients(opened, folder, toy_batches):
    found = []
    for streamed in (False, True):
        started = opened(folder, streamed)
        tower = started.structure.towers["language"]
        found.append(modality_gradients(started.passes, tower, toy_batches, started.family))
    assert found[0] == found[1]


def test_gradients_of_experts_are_those_of_the_whole_mixture(calibrator):  # noqa: F811
    made = calibrator("mixtral", count=1)
    tower = made.structure.towers["language"]
    found = modality_gradients(made.passes, tower, made.batches, made.family)
    block = block_of(made)
    assert {block.place(site) for site in block.sites} <= set(found)
    assert all(size["text"] > 0 for size in found.values())


def test_without_answers_there_is_no_loss(calibrated, toy_batches):
    started = calibrated()
    blind = [b | {"labels": torch.full_like(b["labels"], -100)} for b in toy_batches]
    tower = started.structure.towers["language"]
    with pytest.raises(InputError, match="no answers"):
        modality_gradients(started.passes, tower, blind, started.family)


def test_a_search_measures_once_and_j_counts_with_the_ratio(calibrated, toy_batches):
    started = calibrated(Scheme.parse("w4a8"))
    method = MinMax(token_weights=ModalityBalance())
    started.search(["vision", "projector"], method, "a")
    assert started.state.gradients == {}
    blocks = []

    class Spy(MinMax):
        def solve(self, block):
            decision = super().solve(block)
            blocks.append((block, decision.scores["minmax"]))
            return decision

    started.search(["language"], Spy(token_weights=ModalityBalance()), "b")
    measured = started.state.gradients
    for block, promised in blocks:
        size = measured[block.units[-1].name]
        rho = size["vision"] / size["text"]
        numerator = denominator = 0.0
        for batch, target in enumerate(block.targets):
            with started.structure.only({"language"}):
                out = block.run(batch)
            kind = started.family.token_kind(toy_batches[batch])
            for row in range(out.shape[0]):
                for token in range(out.shape[1]):
                    if block.x_q[batch].mask[row, token]:
                        w = rho if int(kind[row, token]) == VISION else 1.0
                        a, b = (
                            x[row, token].double()
                            / (x[row, token].double().square().mean() + 1e-6).sqrt()
                            for x in (out, target)
                        )
                        numerator += w * float((a - b).square().sum())
                        denominator += w * out.shape[-1]
        assert promised == pytest.approx(numerator / denominator, rel=1e-4)
    before = {n: dict(s) for n, s in measured.items()}
    started.search(["language"], method, "c")
    assert started.state.gradients == before
