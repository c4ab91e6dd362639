"""Records of what makes and what reads a tensor inside a model: scale folds, heads, the residual.

They hold names, never weights. ``qvlm_lightning.models.find_wiring`` fills them in.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Source:
    """The norm or Linear layer that makes the input of a site.

    Its channels can be divided by a factor and its readers multiplied by the same factor without
    changing what the model computes (``qvlm_lightning.nn.folding``).

    Shapes: S channels of the source, C input channels of a reader, C = S x ``repeats``.

    Attributes:
        name: of the norm or Linear layer, relative to the layer of the model that holds it.
        kind: ``norm`` or ``linear``.
        readers: every module with a ``weight`` [O, C] that reads these channels, relative likewise.
            They are more than the site's own Linear layers where a router, other experts or another
            site read the same norm: a fold then moves the inputs of all of them.
        rows: the S rows of a Linear layer that is fused with others, first and behind the last;
            ``None`` for all.
        offset: the gain of a norm is ``offset + weight``; 1 for Gemma, otherwise 0.
        repeats: how often a reader sees every channel of the source. More than 1 behind a value
            projection of grouped-query attention, and behind the norm of a projector that joins
            patches.
        span: channels that are repeated together, one copy behind the other: those of a head, or
            of a patch. ``None`` where ``repeats`` is 1.
    """

    name: str
    kind: Literal["norm", "linear"]
    readers: tuple[str, ...]
    rows: tuple[int, int] | None = None
    offset: float = 0.0
    repeats: int = 1
    span: int | None = None

    def under(self, layer: str) -> "Source":
        """Return the same with full names, for a layer called ``layer`` in the model.

        Example:
            >>> Source("norm", "norm", ("q", "k")).under("layers.0").readers
            ('layers.0.q', 'layers.0.k')
        """
        readers = tuple(f"{layer}.{name}" for name in self.readers)
        return replace(self, name=f"{layer}.{self.name}", readers=readers)

    def channels(self, columns: int) -> Tensor:
        """Return which of the S channels every input channel of a reader is: [C] int64.

        Args:
            columns: C.

        Example:
            >>> Source("v", "linear", ("o",), repeats=2, span=2).channels(8).tolist()
            [0, 1, 0, 1, 2, 3, 2, 3]
        """
        column_C = torch.arange(columns)
        if self.span is None:
            return column_C
        return column_C // (self.span * self.repeats) * self.span + column_C % self.span


@dataclass(frozen=True)
class Projection:
    """A Linear layer, or the rows of one that is fused with others.

    Attributes:
        name: relative to the layer of the model that holds it.
        rows: first row of its weight and the one behind the last; ``None`` for all.
    """

    name: str
    rows: tuple[int, int] | None = None

    def under(self, layer: str) -> "Projection":
        """Return the same with a full name, for a layer called ``layer`` in the model."""
        return replace(self, name=f"{layer}.{self.name}")


@dataclass(frozen=True)
class Attention:
    """The heads of an attention, and the Linear layers around them.

    Query head h reads key and value head ``h // (heads // kv_heads)``.

    Attributes:
        q: [heads x head_dim] rows.
        k: [kv_heads x head_dim] rows.
        v: as ``k``.
        o: [heads x head_dim] input channels, head by head.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: channels of a head.
    """

    q: Projection
    k: Projection
    v: Projection
    o: str
    heads: int
    kv_heads: int
    head_dim: int

    def under(self, layer: str) -> "Attention":
        """Return the same with full names, for a layer called ``layer`` in the model.

        Example:
            >>> Attention(*map(Projection, "qkv"), "o", 4, 2, 8).under("layers.0").v.name
            'layers.0.v'
        """
        q, k, v = (x.under(layer) for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v, o=f"{layer}.{self.o}")


@dataclass(frozen=True)
class Residual:
    """What writes into the residual stream of the decoder, and what reads it; full names.

    Attributes:
        width: D, channels of the stream.
        norms: every norm of the stream with all that reads it, the one before the head included.
        writers: Linear layers whose output [.., D] is added to the stream or starts it: attention
            and MLP outputs, and the last layer of every projector.
        embeddings: the token embeddings, weight [V, D].
        vectors: parameters [.., D] that stand in the stream as they are, such as the one that
            LLaVA-NeXT puts behind every row of patches.
        head: the output head, a reader of the last norm.
        centred: whether a norm subtracts the mean of the stream. A rotation then has to leave the
            vector of ones where it is.
        tied: whether embeddings and head are one Parameter, which a rotation cannot keep.
    """

    width: int
    norms: tuple[Source, ...]
    writers: tuple[str, ...]
    embeddings: str
    vectors: tuple[str, ...]
    head: str
    centred: bool
    tied: bool
