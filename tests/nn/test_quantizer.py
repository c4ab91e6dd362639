"""The quantizer of one site: stacked candidates, Q10, Q12, Q13 and Q14 (docs/paper.md)."""

import contextlib
import io
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qvlm_lightning.nn.linear import QuantLinear, output_sqnr
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.quant.observers import RangeObserver
from qvlm_lightning.quant.primitives import fake_quantize

quick = settings(max_examples=40, deadline=None, derandomize=True)

B, T, D = 2, 5, 4
KINDS = {
    "tensor": ("static_tensor", ()),
    "channel": ("static_channel", (D,)),
    "position": ("static_channel", (T, 1)),
    "token": ("dynamic_token", ()),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, bits: int = 4, consumers: int = 1) -> ActivationQuantizer:
    mode, shape = KINDS[kind]
    quantizer = ActivationQuantizer(bits, mode, shape, consumers)
    quantizer.enabled = True
    return quantizer


def random_ranges(kind: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return [count, *shape] lower and upper bounds; clip ratios for dynamic tokens."""
    shape = (count, *KINDS[kind][1])
    generator = torch.Generator().manual_seed(seed)
    high = 0.3 + 2 * torch.rand(shape, generator=generator)
    return (-high, high) if kind == "token" else (-torch.rand(shape, generator=generator), high)


# --- candidates -----------------------------------------------------------------------------------


@kinds
def test_stacked_candidates_equal_single_ranges(kind):
    @quick
    @given(count=st.integers(1, 5), size=st.integers(1, 3), seed=st.integers(0, 99))
    def check(count, size, seed):
        quantizer = make(kind)
        low, high = random_ranges(kind, count, seed)
        generator = torch.Generator().manual_seed(seed)
        # later layers of a block get another input for every candidate
        x = torch.randn(count * size, T, D, generator=generator)
        with quantizer.candidates(low, high):
            together = quantizer(x)
        for c, part in enumerate(x.split(size)):
            quantizer.set_range(low[c], high[c], 1.0)
            assert torch.equal(together[c * size : (c + 1) * size], quantizer(part))

    check()


@pytest.mark.parametrize("kind", ["tensor", "channel", "token"])
def test_stacked_candidates_of_tokens_without_a_batch_dimension(kind):
    """Some layers hand [N, D] to their Linear layers."""
    quantizer, count = make(kind), 3
    low, high = random_ranges(kind, count)
    x = torch.randn(count * B * T, D)
    with quantizer.candidates(low, high):
        together = quantizer(x)
        batched = quantizer(x.reshape(count * B, T, D))
    assert torch.equal(together.reshape(batched.shape), batched)


@kinds
def test_as_many_candidates_as_tokens_or_channels_are_no_ambiguity(kind):
    for count, size in itertools.product((T, D), (1, T, D)):
        quantizer = make(kind)
        low, high = random_ranges(kind, count)
        x = torch.randn(count * size, T, D)
        with quantizer.candidates(low, high):
            together = quantizer(x)
        quantizer.set_range(low[-1], high[-1], 1.0)
        assert torch.equal(together[-size:], quantizer(x[-size:]))


@kinds
def test_candidates_end_with_their_block(kind):
    quantizer = make(kind, consumers=3)
    low, high = random_ranges(kind, 2)
    quantizer.set_range(low[0], high[0], 1.0)
    x = torch.randn(B, T, D)
    before = quantizer(x)
    with contextlib.suppress(RuntimeError), quantizer.candidates(low, high):
        quantizer(x)
        raise RuntimeError("in the middle of a pass")
    assert torch.equal(quantizer(x), before)


def test_candidates_ignore_learned_ratios_as_set_range_does():
    quantizer = make("tensor")
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0), 1.0)
    with torch.no_grad():
        quantizer.high_ratio.fill_(0.5)
    x = torch.randn(B, T, D)
    with quantizer.candidates(torch.tensor([-1.0]), torch.tensor([1.0])):
        stacked = quantizer(x)
    assert not torch.equal(stacked, quantizer(x))
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0), 1.0)
    assert quantizer.high_ratio.item() == 1
    assert torch.equal(stacked, quantizer(x))


# --- ranges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["channel", "position"])
def test_q10_square_input_uses_the_axis_that_was_stored(kind):
    """As many tokens as channels: nothing is guessed from sizes."""
    size = 4
    shape = (size,) if kind == "channel" else (size, 1)
    quantizer = ActivationQuantizer(3, "static_channel", shape, 1)
    quantizer.enabled = True
    high = torch.arange(1.0, size + 1)
    quantizer.set_range(-high.reshape(shape), high.reshape(shape), 1.0)
    x = 3 * torch.randn(B, size, size)
    y = quantizer(x)
    for index, bound in enumerate(high):
        chosen = (..., index) if kind == "channel" else (slice(None), index)
        assert torch.equal(y[chosen], fake_quantize(x[chosen], -bound, bound, 3))


@kinds
def test_q12_stored_and_loaded_bit_for_bit(kind):
    quantizer, other = make(kind), make(kind)
    low, high = random_ranges(kind, 1)
    quantizer.set_range(low[0], high[0], 0.985)
    with torch.no_grad():
        quantizer.low_ratio.mul_(0.9)
        quantizer.high_ratio.mul_(1.1)
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(B, T, D)
    assert torch.equal(other(x), quantizer(x))
    assert float(other.percentile) == 0.985
    for name, value in quantizer.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
        assert other.state_dict()[name].dtype == value.dtype


@pytest.mark.parametrize("kind", ["tensor", "channel", "token"])
def test_q13_prefill_equals_decoding_token_by_token(kind):
    """Positions are fixed in the tower only, which never decodes."""

    @quick
    @given(seed=st.integers(0, 999), consumers=st.integers(1, 3))
    def check(seed, consumers):
        quantizer = make(kind, consumers=consumers)
        low, high = random_ranges(kind, 1, seed)
        quantizer.set_range(low[0], high[0], 1.0)
        x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))
        prefill = quantizer(x)
        steps = [quantizer(x[:, t : t + 1]) for t in range(T)]
        assert torch.equal(torch.cat(steps, dim=1), prefill)

    check()


@pytest.mark.parametrize("kind", ["tensor", "channel", "token"])
def test_q14_padding_changes_neither_range_nor_other_tokens(kind):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    x = torch.randn(B, T, D)
    outputs = []
    for content in (0.0, 1e6, -1e6, float("nan"), float("inf")):
        padded = x.masked_fill(~mask[..., None], content)
        quantizer = make(kind)
        if kind == "token":
            quantizer.set_range(torch.tensor(-0.99), torch.tensor(0.99), 0.99)
        else:
            observer = RangeObserver("tensor" if kind == "tensor" else "channel")
            observer.update(padded, mask, [0, 1])
            low, high = observer.ranges([0.9])
            quantizer.set_range(low[0], high[0], 0.9)
        outputs.append(quantizer(padded)[mask])
    assert all(torch.equal(y, outputs[0]) for y in outputs[1:])
    assert outputs[0].isfinite().all()


@kinds
def test_set_range_refuses_a_range_of_another_shape(kind):
    quantizer = make(kind)
    with pytest.raises(RuntimeError):
        quantizer.set_range(torch.zeros(7), torch.ones(7), 1.0)


def test_a_quantizer_without_a_range_gives_nothing_usable():
    """Forgotten ranges show as NaN; a silent default would not show at all."""
    assert make("tensor")(torch.randn(B, T, D)).isnan().all()


# --- gradients ------------------------------------------------------------------------------------


@kinds
def test_values_are_the_same_with_and_without_gradients(kind):
    quantizer = make(kind)
    low, high = random_ranges(kind, 1)
    quantizer.set_range(low[0], high[0], 1.0)
    x = torch.randn(B, T, D)
    with torch.no_grad():
        plain = quantizer(x)
    quantizer.high_ratio.requires_grad_(True)
    learned = quantizer(x.clone())
    assert torch.equal(learned, plain)
    learned.square().sum().backward()
    assert quantizer.high_ratio.grad.shape == quantizer.low.shape
    assert (quantizer.high_ratio.grad != 0).any()


def test_every_reader_of_a_shared_input_adds_to_the_gradient():
    """The quantized tensor is made once; its gradient is the sum over the layers that read it."""
    gradients = []
    for shared in (True, False):
        torch.manual_seed(1)
        quantizer = make("tensor", consumers=3 if shared else 1)
        quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0), 1.0)
        quantizer.high_ratio.requires_grad_(True)
        readers = [
            QuantLinear.from_linear(nn.Linear(D, 3), quantizer, i == 0, 16, None, False)
            for i in range(3)
        ]
        x = torch.randn(B, T, D, requires_grad=True)
        torch.stack([reader(x) for reader in readers]).square().sum().backward()
        gradients.append((x.grad, quantizer.high_ratio.grad))
    assert torch.allclose(gradients[0][0], gradients[1][0], rtol=1e-5)
    assert torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-5)


def test_sqnr_of_a_linear_layer_is_that_of_its_output():
    """By hand: a full-precision weight on inputs .9 and .2, which become 1 and 0."""
    site = ActivationQuantizer(2, "static_tensor", (), 1)
    site.set_range(torch.tensor(-1.0), torch.tensor(2.0), 1.0)  # 2 bits: codes -1, 0, 1, 2
    plain = nn.Linear(2, 1, bias=False)
    plain.weight = nn.Parameter(torch.tensor([[0.5, 1.0]]), requires_grad=False)
    linear = QuantLinear.from_linear(plain, site, True, 16, None, False)
    site.enabled = True
    # y = .5 * .9 + .2 = .65, y_q = .5 * 1 + 0 = .5: noise .15
    with output_sqnr({"only": linear}) as found:
        linear(torch.tensor([[0.9, 0.2]]))
    assert found == {"only": pytest.approx(20 * math.log10(0.65 / 0.15), rel=1e-5)}
    site.enabled = False
    with output_sqnr({"only": linear}) as found:
        linear(torch.tensor([[0.9, 0.2]]))
    assert found == {}


def test_sqnr_grows_by_six_decibels_per_bit(quantized, inputs):
    means = {}
    for scheme in ("w4a4", "w6a6", "w8a8"):
        model, structure = quantized(scheme)
        for site in structure.sites:
            site.quantizer.set_range(torch.tensor(-12.0), torch.tensor(12.0), 1.0)  # clips nothing
        linears = {name: x for site in structure.sites for name, x in site.linears.items()}
        with output_sqnr(linears) as found:
            model(**inputs)
        assert found.keys() == linears.keys()
        means[scheme] = sum(found.values()) / len(found)
    # two bits are a quarter of the step: 20 log10(4) = 12 dB
    assert 10 < means["w6a6"] - means["w4a4"] < 14
    assert 10 < means["w8a8"] - means["w6a6"] < 14
