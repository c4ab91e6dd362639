"""Our GPTQ against llm-compressor's: the same Hessian, order and grid, equal codes.

In the extra ``oracles``, which wants an environment of its own (CONTRIBUTING.md).
"""

import pytest
import torch

from qvlm_lightning.quant.gptq import Grid, inverse_factor, sweep
from qvlm_lightning.quant.weights import weight_ranges

gptq = pytest.importorskip(
    "llmcompressor.modifiers.gptq.gptq_quantize", reason="the extra 'oracles' is not installed"
)
DAMP = 0.01


@pytest.mark.slow  # seconds of imports, where it is installed
@pytest.mark.parametrize("actorder", [None, "weight"])
@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
def test_codes_are_those_of_quantize_weight(actorder, group, symmetric, bits):
    from compressed_tensors.quantization import QuantizationArgs

    weight = torch.randn(24, 160, generator=torch.Generator().manual_seed(bits))
    inputs = torch.randn(400, 160, generator=torch.Generator().manual_seed(1))
    inputs = inputs * torch.logspace(-1, 1, 160) + inputs[:, :1]
    gram = (inputs.T @ inputs) / len(inputs)
    low, high = weight_ranges(weight, group, symmetric)
    grid = Grid(low, high, bits, symmetric, weight.dtype)
    scale, zero_point, least, _ = grid.qparams()
    order = torch.arange(160)
    if actorder is not None:
        order = gram.diagonal().argsort(descending=True)
    factor = inverse_factor(gram[order][:, order], DAMP)
    mine, _ = sweep(weight, factor, grid, order)
    shift = 0 if symmetric else least + 2 ** (bits - 1)  # their codes are signed
    args = QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="group" if group else "channel",
        group_size=group,
        actorder=actorder,
    )
    theirs, _, fallback = gptq.quantize_weight(
        weight[None].clone(),
        gram[None].clone(),
        scale.float()[None],
        (zero_point - shift).to(torch.int8)[None],
        None,
        args,
        percdamp=DAMP,
    )
    assert not fallback.any()
    steps = (mine - theirs[0].double()) / scale.repeat_interleave(160 // scale.shape[1], dim=1)
    # theirs is in float32: where a value lies between two codes, one may differ, and what follows
    assert float((steps.abs() > 0.5).double().mean()) < 0.002
    assert float(steps.abs().median()) < 1e-4
