"""Statistics of the attention of every family against its running layers.

Values: the error at the attention's output is that of the form, for any change of the weights.
Queries and keys: the derivative of rotary positions and norms by differences, then plain loops.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.methods import MinMax
from qvlm_lightning.methods.attention_statistics import attention_of, attention_statistics
from qvlm_lightning.nn.replay import run_full_precision
from qvlm_lightning.quant.scheme import Scheme
from tests.models.conftest import BUILDERS

QUICK = {
    ("llava", "vision"),  # no positions
    ("moe_llava", "language"),
    ("qwen2_vl", "vision"),  # fused, packed images
    ("qwen2_5_vl", "language"),  # positions of three axes, grouped queries
    ("qwen3_vl", "language"),  # norms of heads
    ("gemma3", "language"),
}
CASES = [
    pytest.param(kind, tower, marks=() if (kind, tower) in QUICK else pytest.mark.slow)
    for kind in BUILDERS
    for tower in ("vision", "language")
]


class Recorded:
    """What a layer gives its attention function and its output projection, caught by the test."""

    def __init__(self, block: Any, attention: Any, monkeypatch: Any) -> None:
        self.block, self.attention, self.unit = block, attention, block.units[0]
        self.calls: list[tuple[Tensor, Tensor]] = []
        plain = torch.nn.functional.scaled_dot_product_attention

        def record(query: Tensor, key: Tensor, value: Tensor, *a: Any, **k: Any) -> Tensor:
            self.calls.append((query, key))
            return plain(query, key, value, *a, **k)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)

    def run(self, batch: int, tensors: dict[str, Tensor], shifts: Any = ()) -> dict[str, Tensor]:
        """Return ``output`` [N, H E], ``q`` and ``k`` [H, N, E] and ``samples`` [N].

        Args:
            tensors: instead of the model's.
            shifts: (name of a projection, rows, what is added to them).
        """
        call, caught = self.block.x_q[batch], []
        modules = [self.block.module(self.attention.o)]
        handles = [modules[0].register_forward_pre_hook(lambda _, a: caught.append(a[0]))]
        for name, rows, added in shifts:

            def hook(_: Any, args: Any, out: Tensor, rows: Tensor = rows) -> Tensor:
                moved = out.clone()
                moved[..., rows] += added  # noqa: B023
                return moved

            handles.append(self.block.module(name).register_forward_hook(hook))
        self.calls.clear()
        with torch.no_grad():
            run_full_precision(self.unit, call.hidden, call, tensors)
        for handle in handles:
            handle.remove()
        heads, found = self.attention.heads, {"output": caught[0].flatten(0, -2)}
        samples = []
        for query, _ in self.calls:
            first = samples[-1] + 1 if samples else 0
            samples += [first + b for b in range(len(query)) for _ in range(query.shape[2])]
        for place, name in enumerate("qk"):
            parts = [
                pair[place].repeat_interleave(heads // pair[place].shape[1], dim=1)
                for pair in self.calls
            ]
            found[name] = torch.cat([p.transpose(0, 1).flatten(1, 2) for p in parts], dim=1)
        return found | {"samples": torch.tensor(samples)}


def rows_of(projection: Any, weight: Tensor) -> slice:
    return slice(*projection.rows) if projection.rows else slice(0, len(weight))


def made(family: Any, small: Any, batches: Any) -> Any:
    model = small.model().requires_grad_(False).eval()
    calibrator = Calibrator(model, family, Scheme.parse("w4a16"), batches, batches)
    calibrator.collect()
    return calibrator


def first_block(calibrator: Any, tower: str) -> Any:
    owner = calibrator.structure.towers[tower]
    exact, quantized = calibrator.blocks.chains(owner, MinMax())
    calibrator.structure.enable(True, {tower})
    return calibrator.blocks.block(owner, 0, 0, exact, quantized, MinMax())


@pytest.mark.parametrize(("small", "tower"), CASES, indirect=["small"])
def test_values_queries_and_keys_of_every_family(
    small: Any, family: Any, batches: Any, tower: str, monkeypatch: Any
) -> None:
    block = first_block(made(family, small, batches), tower)
    site = next(s for s in block.sites if s.name.endswith("attn_in"))
    attention = attention_of(block, site)
    assert attention is not None
    found = attention_statistics(block, site, attention)
    assert found is not None
    recorded = Recorded(block, attention, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    heads, kv, width = attention.heads, attention.kv_heads, attention.head_dim

    # values: the change of the output is exactly that of the form
    name = f"{attention.v.name}.weight"
    weight = block.tensor(name)
    rows = rows_of(attention.v, weight)
    change = torch.randn(kv, width, weight.shape[1], generator=generator)
    moved = weight.clone()
    moved[rows] += change.flatten(0, 1)
    error, expected = 0.0, 0.0
    for batch in range(len(block.x_q)):
        before, after = (recorded.run(batch, t)["output"] for t in ({}, {name: moved}))
        mask = block.x_q[batch].mask
        kept = torch.ones(len(before)) if mask is None else mask.flatten().float()
        error += float(((after - before).double().square().sum(dim=1) * kept).sum())
    for head in range(kv):
        own = change[head].double()
        expected += float((own @ found.values[head] @ own.T).trace())
    assert error == pytest.approx(expected, rel=1e-3)

    # queries and keys: the derivative of what happens before they meet, channel by channel
    queries, keys = torch.zeros(heads, width, width), torch.zeros(kv, width, width)
    step, group = 1e-2, heads // kv
    for batch in range(len(block.x_q)):
        mask = block.x_q[batch].mask
        plain = recorded.run(batch, {})
        count = len(plain["samples"])
        kept = torch.ones(count, dtype=torch.bool) if mask is None else mask.flatten()
        places = {}
        for own, short, many in ((attention.q, "q", heads), (attention.k, "k", kv)):
            outputs = block.tensor(f"{own.name}.weight").shape[0]
            rows = torch.arange(outputs)[rows_of(own, torch.empty(outputs))]
            places[short] = own.name, rows.reshape(many, width)
        columns: dict[str, list[Tensor]] = {"q": [], "k": []}
        for channel in range(width):
            ends = [
                recorded.run(
                    batch, {}, [(name, p[:, channel], sign * step) for name, p in places.values()]
                )
                for sign in (1, -1)
            ]
            for short, found_columns in columns.items():
                found_columns.append((ends[0][short] - ends[1][short]) / (2 * step))
        slopes = {s: torch.stack(x, dim=-1) for s, x in columns.items()}  # [H, N, E out, E in]
        for sample in plain["samples"].unique():
            here = (plain["samples"] == sample) & kept
            for head in range(heads):
                q, k = plain["q"][head, here], plain["k"][head, here]
                for slope in slopes["q"][head, here]:
                    queries[head] += slope.T @ k.T @ k @ slope
                for slope in slopes["k"][head, here]:
                    keys[head // group] += slope.T @ q.T @ q @ slope
    for one, other in ((found.queries, queries), (found.keys, keys)):
        size = float(other.abs().max())
        torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=2e-3 * size)
