"""What a decode step uses beside packed layers: attention, stored keys and values, the head."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from qvlm_lightning.errors import InputError
from qvlm_lightning.kernels import PackedModel, quantize_head, single_query_attention
from qvlm_lightning.kernels.attention import NAME, attention
from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.kernels.head import head_weight
from qvlm_lightning.kernels.key_values import _ROOM, int8_codes, key_value_cache
from qvlm_lightning.nn.packed_linear import PackedLinear

HEADS, STORED, CHANNELS, WORDS = 4, 2, 16, 40


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=HEADS * CHANNELS,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=STORED,
        head_dim=CHANNELS,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def by_loops(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Attention of one query [H, D] over [J, S, D], in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    for head in range(len(query)):
        own = head * len(keys) // len(query)
        scores = [scaling * float(query[head].double() @ k.double()) for k in keys[own]]
        weights = torch.tensor(scores, dtype=torch.float64).softmax(dim=0)
        for weight, value in zip(weights, values[own], strict=True):
            out[head] += weight * value.double()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 64, 72, 5])
def test_one_query_attends_to_all_keys(channels, dtype):
    """Grouped heads, in a buffer with room behind them; channels fill registers or do not."""
    if extension() is None:
        pytest.skip("no extension here")
    torch.manual_seed(1)
    query = torch.randn(1, HEADS, 1, channels).to(dtype)
    room = torch.full((2, 1, STORED, 50, channels), torch.nan, dtype=dtype)
    room[:, :, :, :37] = torch.randn(2, 1, STORED, 37, channels).to(dtype)
    keys, values = room[0, :, :, :37], room[1, :, :, :37]
    with torch.no_grad():
        found, _ = attention(nn.Module(), query, keys, values, None, scaling=0.7)
    expected = by_loops(query[0, :, 0], keys[0], values[0], 0.7)
    assert found.shape == (1, 1, HEADS, channels)
    assert found.dtype == dtype
    close = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found[0, 0].double(), expected, rtol=close, atol=close)


@torch.no_grad()  # with gradients all is left to torch
def test_a_mask_and_several_queries_are_left_to_torch(monkeypatch):
    monkeypatch.setattr("qvlm_lightning.kernels.attention._single", lambda *_: pytest.fail("taken"))
    x = torch.randn(1, 2, 3, 8)
    module = SimpleNamespace(is_causal=True)
    masked, _ = attention(module, x[:, :, :1], x, x, torch.tensor([[[[False, True, True]]]]))
    expected = by_loops(x[0, :, 0], x[0, :, 1:], x[0, :, 1:], 8**-0.5)
    torch.testing.assert_close(masked[0, 0].double(), expected, rtol=1e-5, atol=1e-5)
    causal, _ = attention(module, x, x, x, None)
    torch.testing.assert_close(causal[:, 0].reshape(2, 8), x[0, :, 0], rtol=1e-5, atol=1e-5)


def steps(model: nn.Module, ids: Tensor, cache: object, prompt: int) -> Tensor:
    """Logits of a prompt and of one token after another."""
    given = {"past_key_values": cache, "use_cache": True}
    found = [model(ids[:, :prompt], **given).logits]
    found += [model(ids[:, t : t + 1], **given).logits for t in range(prompt, ids.shape[1])]
    return torch.cat(found, dim=1)


@torch.no_grad()
def test_buffers_hold_what_was_stored_across_their_growth(model):
    ids = torch.randint(0, WORDS, (1, _ROOM + 12))
    expected = model(ids).logits
    before = model.config._attn_implementation
    cache = key_value_cache(model.config)
    with single_query_attention(model) as used:
        assert used == (extension() is not None)
        assert (model.config._attn_implementation == NAME) == used
        found = steps(model, ids, cache, 3)
    assert model.config._attn_implementation == before
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == ids.shape[1]
    numbers = 2 * STORED * ids.shape[1] * CHANNELS
    assert cache.layers[0].nbytes() == 4 * numbers


@torch.no_grad()
def test_int8_keys_and_values_are_near_and_small(model):
    ids = torch.randint(0, WORDS, (2, 9))
    expected = model(ids).logits
    cache = key_value_cache(model.config, "int8")
    found = steps(model, ids, cache, 4)
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < 0.01
    scales = 2 * 2 * STORED * 9
    assert cache.layers[0].nbytes() == scales * CHANNELS + 4 * scales
    cache.batch_select_indices(torch.tensor([1, 1]))
    again = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits
    assert torch.equal(again[0] - again[0], torch.zeros_like(again[0]))
    assert cache.get_seq_length() == 10


def test_int8_codes_are_off_by_half_a_step_at_most():
    x = torch.randn(2, 3, 5, 8) * torch.logspace(-3, 3, 5)[:, None]
    x[0, 0, 0] = 0
    codes, scale = int8_codes(x)
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) == 127
    assert bool(((codes * scale - x).abs() <= 0.5001 * scale).all())


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_head_answers_as_its_simulation(model, bits):
    """And an embedding that is tied to it keeps its values."""
    import copy

    packed_one, simulated = copy.deepcopy(model), copy.deepcopy(model)
    simulated.model.embed_tokens.weight = simulated.lm_head.weight
    weight = model.lm_head.weight.clone()
    packed = PackedModel()
    quantize_head(packed_one, bits, packed)
    quantize_head(simulated, bits, None)
    assert isinstance(packed_one.lm_head, PackedLinear)
    assert list(packed.layers) == ["lm_head"]
    assert torch.equal(simulated.model.embed_tokens.weight, weight)
    step = weight.abs().amax(dim=1, keepdim=True) / ((2**bits - 1) / 2)
    error = (simulated.lm_head.weight - weight).abs() / step
    assert 0.4 < float(error.max()) <= 1.0001, "half a step, one at the largest code"
    assert torch.equal(head_weight(weight, bits).dequantized(), simulated.lm_head.weight)
    x = torch.randn(3, HEADS * CHANNELS)
    torch.testing.assert_close(packed_one.lm_head(x), simulated.lm_head(x), rtol=1e-4, atol=1e-4)
    assert sum(packed.used().values()) == 1


def test_a_head_that_cannot_be_quantized_says_why(model):
    with pytest.raises(InputError, match="9 bits was asked for; allowed: 2 to 8"):
        quantize_head(model, 9, None)
    other = SimpleNamespace(get_output_embeddings=lambda: None)
    with pytest.raises(InputError, match="the output head is a NoneType"):
        quantize_head(other, 8, None)
