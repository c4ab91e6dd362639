"""The residual stream of a decoder: all that writes into it and all that reads it.

Every parameter of the decoder, of the projectors and of the model around them has to be accounted
for: a rotation that forgets one changes what the model computes.
"""

from collections.abc import Iterable
from typing import Any, NoReturn

from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.models.find_wiring import (
    HEAD_NORMS,
    LATENT_NORMS,
    layout_of,
    norm_form,
    norm_source,
)
from qvlm_lightning.models.wiring import Residual, Source


def find_residual(model: Any, family: VLMFamily, vectors: Iterable[str] = ()) -> Residual:
    """Return the decoder's residual stream.

    Args:
        model: a transformers model with decoder layers of a known layout.
        family: of the model.
        vectors: parameters of the model that stand in the stream as they are.

    Raises:
        InputError: a norm scales what is added to the stream, or something in the model is not
            known to leave a rotated stream alone.
    """
    layers = family.decoder_layers(model)
    decoder = layers[0][0].rsplit(".", 2)[0]
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    name_of = {id(module): name for name, module in model.named_modules()}
    if embeddings is None or head is None:
        _refuse(family, "it has no token embeddings or no output head")
    embedded, headed = name_of[id(embeddings)], name_of[id(head)]
    last = [n for n, _ in model.get_submodule(decoder).named_children() if "norm" in n]
    if len(last) != 1:
        _refuse(family, f"{decoder} has {len(last)} norms behind its layers where one is known")
    final = norm_source(model, f"{decoder}.{last[0]}", (headed,))
    if final is None:
        _refuse(family, f"the form of {decoder}.{last[0]} is not known")
    norms: list[Source] = []
    writers: list[str] = []
    kept = tuple(vectors)
    for name, layer in layers:
        found, wrote = _of_layer(family, name, layer)
        norms += found
        writers += wrote
    for name, projector in family.projectors(model).values():
        writers.append(_of_projector(family, name, projector))
    known = {embedded, headed, final.name, *(name for name, _ in layers)}
    _check(family, model.get_submodule(decoder), known, f"{decoder}.")
    _check_above(family, model, decoder, kept)
    forms = [norm_form(model.get_submodule(norm.name)) for norm in (*norms, final)]
    return Residual(
        width=embeddings.weight.shape[1],
        norms=(*norms, final),
        writers=tuple(writers),
        embeddings=embedded,
        vectors=kept,
        head=headed,
        centred=any(form is not None and form[1] for form in forms),
        tied=head.weight is embeddings.weight,
    )


def _of_layer(family: VLMFamily, name: str, layer: nn.Module) -> tuple[list[Source], list[str]]:
    """Return the norms of a layer with their readers, and its writers."""
    layout = layout_of(layer)
    if layout is None:
        _refuse(family, f"the norms of {name} stand in an order that is not known")
    if layout.behind:
        _refuse(
            family,
            f"{name}.{layout.behind[0]} scales every channel of what is added to the residual",
        )
    groups, sources = family.input_groups(layer), family.sources(layer)
    inner = {f"self_attn.{norm}" for norm in HEAD_NORMS} | set(LATENT_NORMS.values())
    known = {linear for names in groups.values() for linear in names}
    known |= {layout.attention, layout.mlp, *family.routers(layer), *inner}
    _check(family, layer, {f"{name}.{x}" for x in known}, f"{name}.")
    by_name = {source.name: source.under(name) for source in sources.values()}
    norms = []
    for norm in dict.fromkeys((layout.attention, layout.mlp)):
        if norm not in by_name:
            _refuse(family, f"what reads {name}.{norm} is not known")
        norms.append(by_name[norm])
    roles = ("o_in", "down_in")
    outputs = [
        x for site, names in groups.items() if site.rpartition(".")[2] in roles for x in names
    ]
    return norms, [f"{name}.{linear}" for linear in outputs]


def _of_projector(family: VLMFamily, name: str, projector: nn.Module) -> str:
    """Return the last Linear layer of a projector."""
    groups = family.input_groups(projector)
    if not groups:
        _refuse(family, f"{name} has no Linear layer")
    known = {linear for names in groups.values() for linear in names}
    known |= {source.name for source in family.sources(projector).values()}
    _check(family, projector, {f"{name}.{x}" for x in known}, f"{name}.")
    *_, last = groups.values()
    if len(last) != 1:
        _refuse(family, f"{name} ends in {len(last)} Linear layers")
    return f"{name}.{last[0]}"


def _check(family: VLMFamily, module: nn.Module, known: set[str], prefix: str) -> None:
    """Refuse a parameter of ``module`` that is not below one of the known names."""
    for own, _ in module.named_parameters():
        full = f"{prefix}{own}"
        if not any(full.startswith(f"{name}.") for name in known):
            _refuse(family, f"{full} is in no known place")


def _check_above(family: VLMFamily, model: nn.Module, decoder: str, kept: tuple[str, ...]) -> None:
    """Refuse a parameter of the modules around the decoder that is not one of the lone vectors."""
    parts = decoder.split(".")
    for depth in range(len(parts)):
        path = ".".join(parts[:depth])
        for own, _ in model.get_submodule(path).named_parameters(recurse=False):
            full = f"{path}.{own}" if path else own
            if full not in kept:
                _refuse(family, f"{full} is in no known place")


def _refuse(family: VLMFamily, reason: str) -> NoReturn:
    raise InputError(f"the residual of {type(family).__name__} cannot be rotated: {reason}")
