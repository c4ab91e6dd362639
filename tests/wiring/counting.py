"""The dependency between neighbouring layers by plain loops (eq. 4-7)."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tests.wiring.plain import LEVELS, UNITS, Batch, Plain, Range, counted, rows_of, sites_of

Triple = tuple[int, int, int]


def draw(rows: int, channels: int, count: int, seed: int) -> list[tuple[int, float, int]]:
    """Draw sample, share of the sample's tokens and channel; the order of draws is documented in
    ``forward/triples.py``.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(rows, (count,), generator=generator).tolist()
    share = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    channel = torch.randint(channels, (count,), generator=generator).tolist()
    return list(zip(sample, share, channel, strict=True))


@torch.no_grad()
def activations(
    plain: Plain, tower: str, batches: Sequence[Batch], ranges: Mapping[str, Range]
) -> list[list[np.ndarray]]:
    """Return per unit, per sample the input of its attention, [tokens that count, D]."""
    first = [sites_of(tower, unit)[0] for unit in range(len(UNITS[tower]))]
    found: list[list[np.ndarray]] = [[] for _ in first]
    for batch in batches:
        trace, mask = plain.run(batch, ranges), counted(tower, batch)
        for unit, site in enumerate(first):
            for row in range(len(rows_of(tower, batch))):
                x = trace.inputs[site][row]
                found[unit].append((x if mask is None else x[mask[row]]).float().numpy())
    return found


def kinds(batches: Sequence[Batch], image_token: int) -> list[list[bool]]:
    """Return per sample which of its tokens belong to the image."""
    return [
        [int(token) == image_token for token, real in zip(ids, mask, strict=True) if real]
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def codes_of(exact: list[list[np.ndarray]], seen: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Return the codes of ``seen`` on the range that each channel has in ``exact``."""
    coded = []
    for whole, samples in zip(exact, seen, strict=True):
        pool = np.concatenate(whole)
        low, high = pool.min(axis=0), pool.max(axis=0)
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        step = (high - low) / np.float32(LEVELS - 1)
        zero = np.round(-low / step)
        coded.append(
            [np.clip(np.round(x / step + zero), 0, LEVELS - 1).astype(int) for x in samples]
        )
    return coded


def edge_pairs(
    codes: list[list[np.ndarray]], triples: list[tuple[int, float, int]]
) -> list[list[tuple[int, int, int, int]]]:
    """Return per edge, per triple: code, code of the next unit, sample, token."""
    edges = []
    for this, after in itertools.pairwise(codes):
        pairs = []
        for sample, share, channel in triples:
            token = int(share * len(this[sample]))
            u, v = this[sample][token, channel], after[sample][token, channel]
            pairs.append((int(u), int(v), sample, token))
        edges.append(pairs)
    return edges


def conditional_entropy(pairs: Sequence[tuple[int, int]]) -> float:
    """Return H(V|U) in nats."""
    both, left = Counter(pairs), Counter(u for u, _ in pairs)
    return -sum(n / len(pairs) * math.log(n / left[u]) for (u, _), n in both.items())


def blocks_of(edges: Sequence[float], threshold: float, depth: int) -> list[list[int]]:
    """Cut from left to right: the longest block whose edges exceed the threshold on average."""
    blocks, first = [], 0
    while first <= len(edges):
        last = first
        for end in range(first + 1, min(first + depth, len(edges) + 1)):
            if sum(edges[first:end]) / (end - first) > threshold + 1e-12:
                last = end
        blocks.append([first, last])
        first = last + 1
    return blocks
