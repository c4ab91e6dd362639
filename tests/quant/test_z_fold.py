"""Scales of input channels found in turn with a rounded weight, against plain loops."""

import pytest
import torch

from qvlm_lightning.quant.z_fold import RATIOS, FoldedLayer, channel_scales


def layer_of(seed, channels, outputs=6, bits=3):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, len(channels), generator=generator)
    inputs = torch.randn(50, len(channels), generator=generator).double()
    gram = inputs.T @ inputs
    return FoldedLayer(weight, gram, torch.tensor(channels), bits, None, False)


def nearest(row, low, high, bits):
    """A row on the values between two ends."""
    most = 2**bits - 1
    scale = (high - low) / most
    zero = round(-low / scale)
    return [(min(max(round(x / scale) + zero, 0), most) - zero) * scale for x in row]


def form(row, gram):
    """``d H d^T``, product after product."""
    return sum(a * float(gram[i, j]) * b for i, a in enumerate(row) for j, b in enumerate(row))


def rounded(layer, scale):
    """``Q(W diag(1 / z))``, each row on the best of its ranges."""
    count, found = layer.weight.shape[1], []
    z = [float(scale[int(channel)]) for channel in layer.channels]
    gram = [[float(layer.gram[i, j]) * z[i] * z[j] for j in range(count)] for i in range(count)]
    for given in layer.weight.tolist():
        row, tried = [x / s for x, s in zip(given, z, strict=True)], []
        for ratio in RATIOS:
            own = nearest(row, min(*row, 0) * ratio, max(*row, 0) * ratio, layer.num_bits)
            error = form([a - b for a, b in zip(own, row, strict=True)], torch.tensor(gram))
            tried.append((error, own))
        found.append(min(tried)[1])
    return found


def test_one_round_is_the_least_squares_answer():
    """Two layers read three channels; the second one sees each of them twice."""
    layers = [layer_of(0, [0, 1, 2]), layer_of(1, [0, 1, 2, 0, 1, 2])]
    products, squares = [0.0] * 3, [0.0] * 3
    for layer in layers:
        for row, own in zip(layer.weight.tolist(), rounded(layer, torch.ones(3)), strict=True):
            for channel, w, q in zip(layer.channels.tolist(), row, own, strict=True):
                products[channel] += w * q
                squares[channel] += q * q
    expected = [p / s for p, s in zip(products, squares, strict=True)]
    found = channel_scales(layers, 3, rounds=1)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert found.tolist() != [1.0] * 3


def test_a_folded_weight_is_rounded_for_its_folded_inputs():
    layer, scale = layer_of(2, [0, 1, 2, 3]), torch.tensor([0.2, 1.0, 3.0, 0.7]).double()
    own = layer.rounded(scale)
    expected = torch.tensor(rounded(layer, scale))
    torch.testing.assert_close(own.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_error_never_grows_and_mostly_falls(seed):
    layers = [layer_of(seed, list(range(12))), layer_of(seed + 9, list(range(12)))]

    def error(scale):
        return sum(x.error(x.rounded(scale), scale) for x in layers)

    errors = [error(channel_scales(layers, 12, rounds=n)) for n in (1, 2, 30)]
    assert errors[0] <= error(torch.ones(12, dtype=torch.float64))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.98 * error(torch.ones(12, dtype=torch.float64))


def test_scales_that_are_worse_are_not_taken():
    for seed in range(40):
        layer = layer_of(seed, [0, 1, 2, 3], outputs=3, bits=2)
        scales = [channel_scales([layer], 4, rounds=n) for n in (1, 2, 4, 8)]
        errors = [layer.error(layer.rounded(x), x) for x in (torch.ones(4).double(), *scales)]
        assert errors == sorted(errors, reverse=True)


def test_a_channel_that_is_rounded_to_nothing_keeps_its_scale():
    moved = 0
    for seed in range(6):
        layer = layer_of(seed, [0, 1, 2])
        layer.weight[:, 1] = 1e-9
        found = channel_scales([layer], 3)
        assert float(found[1]) == 1.0
        assert bool((found > 0).all())
        moved += float(found[0]) != 1.0
    assert moved
