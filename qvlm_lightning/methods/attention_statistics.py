"""Statistics of an attention, for the error that rounded projections make at its output.

Kim et al., NeurIPS 2024 (arXiv:2402.08958): eq. 17 for values, eq. 21 and 22 for queries and keys,
per head. Rotary positions, norms of heads and masks are taken from the running layer.

Shapes: N tokens of a batch, T queries and S keys of a call, B samples, H query heads, K key and
value heads, E channels of a head, D channels of the input.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.models.family import Attention, Projection
from qvlm_lightning.nn.attention_calls import AttentionCall, attention_calls
from qvlm_lightning.nn.distributed import all_sum
from qvlm_lightning.nn.replay import run_unit
from qvlm_lightning.nn.site_input import site_inputs
from qvlm_lightning.nn.structure import Site
from qvlm_lightning.nn.taps import stop_at
from qvlm_lightning.nn.weight_quantizer import exact_weights


@dataclass
class AttentionStatistics:
    """Sums over the tokens of all batches and processes, float64.

    A token t counts lambda_t as a query (its output does), 1 as a key.

    Attributes:
        queries: ``sum_t lambda_t J_t^T K^T K J_t``, [H, E, E], with K the keys of the token's
            sample and J_t what the layer does to a query on the way to the keys, as a derivative.
        keys: ``sum_t J_t^T (sum Q^T Lambda Q) J_t``, [K, E, E], Q of all heads that read the key.
        values: ``X A^T Lambda A X^T``, [K, D, D], A of all heads that read the value.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor

    def reduced(self) -> "AttentionStatistics":
        """Return the sums over all processes, symmetric to the bit."""
        sums = (all_sum(x) for x in (self.queries, self.keys, self.values))
        return AttentionStatistics(*((x + x.transpose(1, 2)) / 2 for x in sums))


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a batch, sample after sample.

    Attributes:
        inputs: [N, D], as the projections read them; 0 where a token does not count.
        weight: [N], lambda; 0 where a token does not count.
        key: [N], 1 for what is a key that queries find, sink tokens too.
        value: [N], 1 for what counts.
    """

    inputs: Tensor
    weight: Tensor
    key: Tensor
    value: Tensor


def attention_of(block: Block, site: Site) -> Attention | None:
    """Return the attention whose queries, keys and values read a site, with full names; ``None`` if
    there is none or its form is not known.
    """
    found = block.attentions.get(block.units[block.unit_of(site)].name)
    if found is None:
        return None
    return found if {x.name for x in (found.q, found.k, found.v)} <= site.linears.keys() else None


@torch.no_grad()
def attention_statistics(
    block: Block, site: Site, attention: Attention, decision: Decision | None = None
) -> AttentionStatistics | None:
    """Return the statistics of an attention on the inputs of the quantized chain, behind the
    quantizer of the site, with the weights of its projections in full precision.

    Args:
        block: with its cached inputs; token weights are those at the site's place.
        site: which its projections read.
        attention: with full names.
        decision: what the layers up to the site are like.

    Returns:
        ``None`` if the attention does not call the library's function for all of its tokens.
    """
    heads, kv, width = attention.heads, attention.kv_heads, attention.head_dim
    inputs, device = site.leader.in_features, site.leader.weight.device
    shapes = ((heads, width, width), (kv, width, width), (kv, inputs, inputs))
    made = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
    sums, unknown = AttentionStatistics(*made), torch.zeros(1, dtype=torch.float64)
    for batch in block.mine():
        tokens, calls, leaves = _run(block, site, attention, batch, decision)
        if not _complete(calls, attention, len(tokens.weight)):
            unknown += 1
            continue
        sizes = [call.query.shape[0] * call.query.shape[2] for call in calls]
        pieces = [x.split(sizes) for x in (tokens.inputs, tokens.weight, tokens.key)]
        parts = list(zip(calls, *pieces, strict=True))
        for call, rows, weight, _ in parts:
            _add_values(sums.values, call, rows, weight)
        _add_queries_and_keys(sums, attention, parts, leaves, tokens)
    return None if float(all_sum(unknown)) else sums.reduced()


def _complete(calls: list[AttentionCall], attention: Attention, tokens: int) -> bool:
    """Whether the calls are of all tokens, as queries and keys of heads of the known sizes."""
    for call in calls:
        samples, heads, length, width = call.query.shape
        own = heads, width, call.key.shape
        known = attention.heads, attention.head_dim
        if own != (*known, (samples, attention.kv_heads, length, attention.head_dim)):
            return False
    return sum(call.query.shape[0] * call.query.shape[2] for call in calls) == tokens


def _run(
    block: Block, site: Site, attention: Attention, batch: int, decision: Decision | None
) -> tuple[_Tokens, list[AttentionCall], dict[str, Tensor]]:
    """Run a layer up to its output projection.

    Returns:
        Its tokens, the calls of its attention, and the outputs of its query and key projections, in
        which the calls can be differentiated.
    """
    place, call = block.unit_of(site), block.x_q[batch]
    unit, tensors = block.units[place], block.decided(decision)
    hidden = block.run(batch, decision, slice(0, place))
    output = block.module(attention.o)
    module = block.module(attention.o.rpartition(".")[0])
    names = {attention.q.name, attention.k.name}
    with ExitStack() as stack:
        seen = stack.enter_context(site_inputs([site], hidden, call.mask, quantized=True))
        stack.enter_context(exact_weights(x.weight_quantizer for x in site.linears.values()))
        leaves = stack.enter_context(_leaves({name: site.linears[name] for name in names}))
        calls = stack.enter_context(attention_calls(module))
        stack.enter_context(stop_at(output, lambda *_: None))
        stack.enter_context(torch.enable_grad())
        run_unit(unit, hidden, call, tensors=tensors)
    block.cost.count(layers=1)
    own = seen[site.name]
    weight = block.weight(batch, own.mask, block.place(site))
    every = torch.ones(own.hidden.shape[:-1], device=own.hidden.device)
    weight_N = (every if weight is None else weight.float()).reshape(-1)
    value_N = (every if own.mask is None else own.mask.float()).reshape(-1)
    key_N = value_N
    if call.sinks is not None:  # they are left out of sums, but every query finds them
        key_N = torch.maximum(value_N, (call.sinks[1] >= 0).float().reshape(-1).to(value_N))
    rows = own.hidden.reshape(-1, own.hidden.shape[-1])
    rows = torch.where(value_N[:, None] > 0, rows, torch.zeros_like(rows))
    return _Tokens(rows, weight_N, key_N, value_N), calls, leaves


@contextmanager
def _leaves(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Within the block, what the modules give is where derivatives end; by name."""
    found: dict[str, Tensor] = {}

    def tap(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            found[name] = output.detach().requires_grad_()
            return found[name]

        return module.register_forward_hook(hook)

    handles = [tap(name, module) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _add_values(sums_KDD: Tensor, call: AttentionCall, rows: Tensor, weight: Tensor) -> None:
    """Add ``X A^T Lambda A X^T`` of a call, head after head."""
    samples, _, length, _ = call.query.shape
    own = rows.reshape(samples, length, -1)
    for head in range(len(sums_KDD)):
        averages = call.averages(own, head).float().reshape(len(rows), -1, rows.shape[-1])
        weighted = averages * weight[:, None, None]
        sums_KDD[head] += weighted.flatten(0, 1).T @ averages.flatten(0, 1)


_Part = tuple[AttentionCall, Tensor, Tensor, Tensor]


def _add_queries_and_keys(
    sums: AttentionStatistics,
    attention: Attention,
    parts: list[_Part],
    leaves: Mapping[str, Tensor],
    tokens: _Tokens,
) -> None:
    """Add ``J^T C J`` of every token, C the other side's second moments: ``C = F F^T``, and a
    column of ``J^T F`` for all tokens at once is one backward pass.
    """
    heads, kv, width = attention.heads, attention.kv_heads, attention.head_dim
    group, outputs, roots = heads // kv, [], []
    for call, _, weight, key in parts:
        samples, _, length, _ = call.query.shape
        grouped = call.query.detach().reshape(samples, kv, group * length, width)
        keys_BS, weight_BT = key.reshape(samples, 1, -1), weight.reshape(samples, 1, -1)
        outputs += [call.query, call.key]
        roots.append(_root(call.key.detach(), keys_BS).repeat_interleave(group, dim=1))
        roots.append(_root(grouped, weight_BT.repeat(1, 1, group)))
    names = dict.fromkeys((attention.q.name, attention.k.name))
    for column in range(width):
        cotangents = [
            root[:, :, None, :, column].expand_as(x).to(x)
            for root, x in zip(roots, outputs, strict=True)
        ]
        found = torch.autograd.grad(
            outputs, [leaves[n] for n in names], cotangents, retain_graph=True
        )
        slopes = dict(zip(names, found, strict=True))
        _add_products(sums.queries, slopes, attention.q, tokens.weight)
        _add_products(sums.keys, slopes, attention.k, tokens.value)


def _root(rows_BHTE: Tensor, weight_B1T: Tensor) -> Tensor:
    """Return F with ``F F^T = sum_t w_t r_t r_t^T``, [B, H, E, E] float32."""
    rows = rows_BHTE.double()
    moments = (rows * weight_B1T[..., None]).transpose(2, 3) @ rows
    values, vectors = torch.linalg.eigh(moments)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]).float()


def _add_products(
    sums_HEE: Tensor, slopes: Mapping[str, Tensor], own: Projection, weight_N: Tensor
) -> None:
    """Add ``sum_t w_t g_t g_t^T`` of the rows of a projection, head by head."""
    count, width, _ = sums_HEE.shape
    slope = slopes[own.name]
    slope = slope.reshape(-1, slope.shape[-1])[:, slice(*own.rows) if own.rows else slice(None)]
    rows = slope.float().reshape(len(slope), count, width).transpose(0, 1)
    sums_HEE += (rows * weight_N[:, None]).transpose(1, 2) @ rows
