"""The wiring of transformers' layers, found by the names of their modules.

A layer is read only where its set of norms is one of :data:`LAYOUTS` and every weight in it is
accounted for; of any other nothing is said, so that no fold is wrong in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.models.wiring import Attention, Projection, Source

Groups = Mapping[str, Sequence[str]]
"""Site -> Linear layers of a layer that share its input (``VLMFamily.input_groups``)."""


@dataclass(frozen=True)
class Layout:
    """Where the norms of a layer stand.

    Attributes:
        attention: the norm before the attention.
        mlp: the norm before the MLP or the experts; the same one where both run side by side.
        behind: norms on what attention and MLP add to the residual.
    """

    attention: str
    mlp: str
    behind: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """All norms."""
        return {self.attention, self.mlp, *self.behind}


LAYOUTS = (
    Layout("input_layernorm", "post_attention_layernorm"),  # Llama, Qwen, Gemma, StableLM
    Layout("input_layernorm", "input_layernorm"),  # Phi, Cohere
    Layout(  # Gemma 2 and 3
        "input_layernorm",
        "pre_feedforward_layernorm",
        ("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    Layout("layer_norm1", "layer_norm2"),  # CLIP, SigLIP
    Layout("norm1", "norm2"),  # towers of the Qwen line
    Layout("layernorm_before", "layernorm_after"),  # InternVL
)

LATENT_NORMS = {"q_in": "self_attn.q_a_layernorm", "kv_in": "self_attn.kv_a_layernorm"}
"""Norms between the halves of a low-rank projection, by the site behind them (DeepSeek)."""

HEAD_NORMS = {"q_norm", "k_norm", "q_layernorm", "k_layernorm"}
"""Norms within an attention that leave its values alone."""

_FUSED = {"qkv", "qkv_proj"}  # rows: queries, keys, values


def layout_of(layer: nn.Module) -> Layout | None:
    """Return where the norms of a layer stand; ``None`` for an arrangement that is not known."""
    found = {name for name, _ in layer.named_children() if "norm" in name}
    return next((layout for layout in LAYOUTS if layout.names == found), None)


@torch.no_grad()
def norm_form(norm: nn.Module) -> tuple[float, bool] | None:
    """Return the offset of a norm's gain, 0 or 1, and whether the norm subtracts the mean.

    Families store a gain as it is or, like Gemma, less 1. Which, its output says: it is computed
    with weights 0 and 1 on numbers made up here, so that a model without weights can be asked too.

    Returns:
        ``None`` if the output is no ``(offset + weight) * normalised + bias``.
    """
    own = dict(norm.named_parameters())
    weight = own.get("weight")
    if weight is None or weight.dim() != 1 or own.keys() - {"weight", "bias"}:
        return None
    x_2D = torch.linspace(-1, 2, 2 * len(weight)).reshape(2, -1).sin() + 0.5

    def output(gain: float, x: Tensor) -> Tensor:
        filled = {n: torch.full((len(weight),), gain if n == "weight" else 0.0) for n in own}
        return torch.func.functional_call(norm, filled, (x,)).double()

    bare, whole = output(0.0, x_2D), output(1.0, x_2D)
    unit = whole - bare
    offset = float((bare * unit).sum() / unit.square().sum())
    centred = torch.allclose(output(1.0, x_2D + 1), whole, atol=1e-3)
    shape = x_2D.double() - x_2D.mean(-1, keepdim=True) if centred else x_2D.double()
    expected = shape * shape.square().mean(-1, keepdim=True).rsqrt()
    if not torch.allclose(unit, expected, atol=1e-3) or min(abs(offset), abs(offset - 1)) > 1e-3:
        return None
    return float(round(offset)), centred


def norm_source(
    layer: nn.Module, name: str, readers: Sequence[str], repeats: int = 1
) -> Source | None:
    """Return a norm as the source of all that reads it; ``None`` if its form is not known.

    Args:
        layer: holds the norm.
        name: of the norm within it.
        readers: all of them.
        repeats: copies of the norm's output in a reader's input.
    """
    norm = layer.get_submodule(name)
    form = norm_form(norm)
    if form is None:
        return None
    width = len(norm.get_parameter("weight"))
    span = width if repeats > 1 else None
    return Source(name, "norm", tuple(readers), None, form[0], repeats, span)


def find_sources(layer: nn.Module, groups: Groups, routers: Sequence[str]) -> dict[str, Source]:
    """Return site -> what makes its input, for the sites of a tower's or decoder's layer.

    Args:
        layer: a layer with attention and MLP or experts.
        groups: its sites.
        routers: what decides between its experts.
    """
    sources = _norm_sources(layer, groups, routers)
    for site, name in LATENT_NORMS.items():
        if site in groups and name in dict(layer.named_modules()):
            source = norm_source(layer, name, groups[site])
            sources |= {site: source} if source else {}
    attention = find_attention(layer, groups)
    if attention:
        repeats = attention.heads // attention.kv_heads
        span = attention.head_dim if repeats > 1 else None
        v = attention.v
        sources["o_in"] = Source(v.name, "linear", (attention.o,), v.rows, 0.0, repeats, span)
    for site, names in groups.items():
        if _role(site) == "down_in":
            source = _gated_source(layer, names)
            sources |= {site: source} if source else {}
    return {site: sources[site] for site in groups if site in sources}


def _role(site: str) -> str:
    """Return the site's name within its expert, ``mlp_in`` or ``down_in``."""
    return site.rpartition(".")[2]


def _norm_sources(layer: nn.Module, groups: Groups, routers: Sequence[str]) -> dict[str, Source]:
    """Return the sources of the sites that read a norm of the layer."""
    layout = layout_of(layer)
    if layout is None or strays(layer, groups, routers):
        return {}
    readers: dict[str, list[str]] = {layout.attention: [], layout.mlp: []}
    norm_of = {"attn_in": layout.attention, "mlp_in": layout.mlp}
    sites = {site: norm_of[_role(site)] for site in groups if _role(site) in norm_of}
    for site, norm in sites.items():
        readers[norm] += groups[site]
    readers[layout.mlp] += routers
    found = {name: norm_source(layer, name, all_) for name, all_ in readers.items() if all_}
    return {site: source for site, norm in sites.items() if (source := found.get(norm))}


def strays(layer: nn.Module, groups: Groups, routers: Sequence[str]) -> list[str]:
    """Return the modules of a layer that hold a weight matrix and are in no site and no router."""
    known = {name for names in groups.values() for name in names} | set(routers)
    return [
        name
        for name, module in layer.named_modules()
        if any(p.dim() >= 2 for p in module.parameters(recurse=False))
        and not any(name == one or name.startswith(f"{one}.") for one in known)
    ]


def find_attention(layer: Any, groups: Groups) -> Attention | None:
    """Return the heads of a layer's attention; ``None`` if it has another form.

    Args:
        layer: a tower's or decoder's layer.
        groups: its sites.
    """
    outputs = groups.get("o_in", ())
    if len(outputs) != 1:
        return None
    path = outputs[0].rpartition(".")[0]
    module = layer.get_submodule(path)
    head_dim = getattr(module, "head_dim", None)
    norms = {name for name, _ in module.named_children() if "norm" in name}
    if not isinstance(head_dim, int) or norms - HEAD_NORMS:
        return None
    heads = layer.get_submodule(outputs[0]).in_features // head_dim
    inputs = {n.rpartition(".")[2]: n for n in groups.get("attn_in", ()) if n.startswith(path)}
    rows = {own: layer.get_submodule(name).out_features for own, name in inputs.items()}
    if inputs.keys() == {"q_proj", "k_proj", "v_proj"}:
        q, k, v = (Projection(inputs[f"{x}_proj"]) for x in "qkv")
        kv_heads = rows["v_proj"] // head_dim
        fits = rows["q_proj"] == heads * head_dim and rows["k_proj"] == rows["v_proj"]
    elif len(inputs) == 1 and inputs.keys() <= _FUSED:
        ((own, name),) = inputs.items()
        kv_heads = (rows[own] // head_dim - heads) // 2
        ends = [heads * head_dim, (heads + kv_heads) * head_dim, rows[own]]
        starts = [0, *ends[:2]]
        q, k, v = (Projection(name, pair) for pair in zip(starts, ends, strict=True))
        fits = rows[own] == (heads + 2 * kv_heads) * head_dim
    else:
        return None
    if not fits or not kv_heads or heads % kv_heads:
        return None
    return Attention(q, k, v, outputs[0], heads, kv_heads, head_dim)


def _gated_source(layer: Any, down: Sequence[str]) -> Source | None:
    """Return the up projection of a gated MLP, in whose output its last layer is linear."""
    path = down[0].rpartition(".")[0]
    mlp = layer.get_submodule(path)
    names = {name for name, _ in mlp.named_children()}
    if len(down) != 1 or any("norm" in name for name in names):
        return None
    if {"gate_proj", "up_proj"} <= names:
        return Source(f"{path}.up_proj", "linear", (down[0],))
    if "gate_up_proj" in names:
        half = layer.get_submodule(down[0]).in_features
        return Source(f"{path}.gate_up_proj", "linear", (down[0],), (half, 2 * half))
    return None
