"""Running ranges and a seeded token reservoir for percentiles.

Shapes: B batch, T tokens, D channels, P percentiles, N tokens kept.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError

Granularity = Literal["tensor", "channel", "position"]


class NonFiniteError(InputError):
    """An activation is NaN or infinite."""


def check_percentiles(percentiles: Sequence[float]) -> None:
    """Refuse percentiles outside (0.5, 1].

    Raises:
        InputError: one of them is outside, or there is none.
    """
    if not percentiles:
        raise InputError("no percentile is given; at least one in (0.5, 1] is needed")
    for percentile in percentiles:
        if not 0.5 < percentile <= 1:
            raise InputError(f"percentile {percentile} is not allowed; more than 0.5, at most 1")


class RangeObserver:
    """Collects the ranges of one site's activations, sample by sample.

    Minima and maxima are exact. Quantiles come from a reservoir: of each sample a share that
    depends on the seed and the sample alone, so that batches, order and number of processes do not
    matter, nor does padding. It waits in host memory: those of all sites are larger than the model.

    Args:
        granularity: one range per ``tensor``, per ``channel`` or per token ``position``.
        seed: seed of the reservoir.
        max_tokens: tokens kept of ``expected_samples`` samples; per ``position``, channels instead
            of tokens are left out, so that every position keeps equally many values.
        expected_samples: number of samples the reservoir is divided among.
    """

    def __init__(
        self,
        granularity: Granularity,
        seed: int = 0,
        max_tokens: int = 8192,
        expected_samples: int = 64,
    ) -> None:
        if granularity not in ("tensor", "channel", "position"):
            raise InputError(
                f"granularity {granularity!r} is not known; "
                "allowed: 'tensor', 'channel', 'position'"
            )
        self.granularity: Granularity = granularity
        self.seed, self.max_tokens, self.expected_samples = seed, max_tokens, expected_samples
        self._channel: tuple[Tensor, Tensor] | None = None  # [D], [D]
        self._position: tuple[Tensor, Tensor] | None = None  # [T], [T]
        self._kept: dict[int, Tensor] = {}  # sample -> [N, D]; per position [T, N]
        self._seen: dict[int, int] = {}  # sample -> tokens that counted

    def update(self, x_BTD: Tensor, mask_BT: Tensor | None, sample_index: Sequence[int]) -> None:
        """Take in the activations of some samples.

        Args:
            x_BTD: activations; what the mask leaves out may hold anything.
            mask_BT: bool, tokens that count; ``None`` for all. A sample without any is passed over.
            sample_index: number of each sample in the calibration set, [B].

        Raises:
            NonFiniteError: an activation that counts is NaN or infinite.
            InputError: shapes do not fit to each other or to what came before.
        """
        if x_BTD.dim() != 3 or len(sample_index) != x_BTD.shape[0]:
            raise InputError(
                f"activations of shape {tuple(x_BTD.shape)} came with {len(sample_index)} sample "
                "numbers; allowed is [samples, tokens, channels]"
            )
        for row, index in enumerate(sample_index):
            x_TD = x_BTD[row].detach().to(torch.float32)
            if mask_BT is not None:
                kept = mask_BT[row].bool()
                if self.granularity == "position" and kept.any() and not kept.all():
                    raise InputError(
                        "ranges per position need every token of a sample; some are masked"
                    )
                x_TD = x_TD[kept]
            if x_TD.shape[0]:
                self._take(x_TD, int(index))

    def _take(self, x_TD: Tensor, index: int) -> None:
        low_D, high_D = torch.aminmax(x_TD, dim=0)
        if not (low_D.isfinite().all() and high_D.isfinite().all()):
            count = int((~x_TD.isfinite()).sum())
            raise NonFiniteError(
                f"{count} of {x_TD.numel()} values of sample {index} are NaN or infinite; "
                "all must be finite"
            )
        self._channel = _union(self._channel, (low_D, high_D), "channels")
        if self.granularity == "position":
            low_T, high_T = torch.aminmax(x_TD, dim=1)
            self._position = _union(self._position, (low_T, high_T), "positions")
        self._kept[index] = self._choose(x_TD, index)
        self._seen[index] = x_TD.shape[0]

    @property
    def tokens(self) -> int:
        """Number of tokens observed."""
        return sum(self._seen.values())

    def _choose(self, x_TD: Tensor, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(Random(f"{self.seed}/{index}").getrandbits(62))
        length, width = x_TD.shape
        share = max(1, self.max_tokens // self.expected_samples)
        if self.granularity == "position":
            count = min(width, max(1, share * width // length))
            columns = torch.randperm(width, generator=generator)[:count]
            return x_TD[:, columns.to(x_TD.device)].cpu()
        rows = torch.randperm(length, generator=generator)[:share]
        return x_TD[rows.to(x_TD.device)].cpu()

    def merge(self, other: "RangeObserver") -> None:
        """Take over what another observer of the same kind has seen, in any order."""
        mine = (self.granularity, self.seed, self.max_tokens, self.expected_samples)
        theirs = (other.granularity, other.seed, other.max_tokens, other.expected_samples)
        if mine != theirs:
            raise InputError(f"observers of different kinds cannot be merged: {mine} and {theirs}")
        if other._channel is not None:
            self._channel = _union(self._channel, other._channel, "channels")
        if other._position is not None:
            self._position = _union(self._position, other._position, "positions")
        self._kept |= other._kept
        self._seen |= other._seen

    @classmethod
    def pooled(cls, parts: Sequence["RangeObserver"]) -> "RangeObserver":
        """Return an observer of all that ``parts`` have seen of the same samples.

        Where :meth:`merge` unites different samples of one site, this unites different sites, such
        as those of the experts of a layer; granularity is not ``position``.
        """
        first = parts[0]
        new = cls(first.granularity, first.seed, first.max_tokens, first.expected_samples)
        for part in parts:
            if part._channel is not None:
                new._channel = _union(new._channel, part._channel, "channels")
            for index, rows in part._kept.items():
                known = new._kept.get(index)
                new._kept[index] = rows if known is None else torch.cat([known, rows])
                new._seen[index] = new._seen.get(index, 0) + part._seen[index]
        return new

    def ranges(
        self, percentiles: Sequence[float], device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the range at each percentile p, from the (1-p)- to the p-quantile.

        Quantiles are linear between ranks;
        p = 1 gives the exact minimum and maximum; ranges of smaller p lie inside those of larger p.

        Args:
            percentiles: each in (0.5, 1].
            device: where the quantiles are computed; default that of the reservoir.

        Returns:
            low and high, float32: [P] per tensor, [P, D] per channel, [P, T, 1] per position.
        """
        check_percentiles(percentiles)
        exact_low, exact_high = (x.to(device or "cpu") for x in self._exact())
        low, high = [], []
        inner = [p for p in percentiles if p < 1]
        tails = _two_sided_quantiles(self._pool(exact_low.device), inner) if inner else {}
        for percentile in percentiles:
            below, above = tails.get(percentile, (exact_low, exact_high))
            low.append(below.reshape(exact_low.shape))
            high.append(above.reshape(exact_high.shape))
        return torch.stack(low), torch.stack(high)

    def channel_range(self) -> tuple[Tensor, Tensor]:
        """Return the exact minimum and maximum of every channel, [D], whatever the granularity."""
        if self._channel is None:
            raise InputError(
                "no token has been observed; the calibration set must hold at least one"
            )
        return self._channel

    def absmax(self) -> Tensor:
        """Return the largest magnitude: scalar per tensor, [D] per channel, [T, 1] per position."""
        low, high = self._exact()
        return torch.maximum(-low, high)

    def _exact(self) -> tuple[Tensor, Tensor]:
        low_D, high_D = self.channel_range()
        if self.granularity == "tensor":
            return low_D.amin(), high_D.amax()
        if self.granularity == "channel":
            return low_D, high_D
        assert self._position is not None
        return self._position[0][:, None], self._position[1][:, None]

    def _pool(self, device: torch.device) -> Tensor:
        """Return the reservoir as [values, ranges], put together on ``device``."""
        samples = [self._kept[index].to(device) for index in sorted(self._kept)]
        if self.granularity == "position":
            return torch.cat(samples, dim=1).T
        pool_ND = torch.cat(samples)
        return pool_ND.reshape(-1, 1) if self.granularity == "tensor" else pool_ND

    def sample(self, count: int = 4096) -> Tensor:
        """Return about ``count`` observed values, evenly spaced in the reservoir, for pictures."""
        samples = [self._kept[index] for index in sorted(self._kept)]
        if self.granularity == "position":  # of the pool, whose rows are not those of a sample
            samples = [torch.cat(samples, dim=1).T]
        step = max(1, sum(x.numel() for x in samples) // count)
        picked, behind = [], 0
        for x in samples:
            picked.append(x.flatten()[-behind % step :: step])
            behind += x.numel()
        return torch.cat(picked)

    def state(self) -> dict[str, Any]:
        """Return plain tensors, numbers and strings, for a checkpoint or another process."""
        return {
            "granularity": self.granularity,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "expected_samples": self.expected_samples,
            # another process has another device
            "channel": None if self._channel is None else [x.cpu() for x in self._channel],
            "position": None if self._position is None else [x.cpu() for x in self._position],
            "samples": sorted(self._kept),
            "kept": [self._kept[index] for index in sorted(self._kept)],
            "seen": [self._seen[index] for index in sorted(self._kept)],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RangeObserver":
        """Make an observer that continues where :meth:`state` was taken."""
        names = ("granularity", "seed", "max_tokens", "expected_samples")
        new = cls(**{name: state[name] for name in names})
        new._channel = None if state["channel"] is None else tuple(state["channel"])
        new._position = None if state["position"] is None else tuple(state["position"])
        new._kept = dict(zip(state["samples"], state["kept"], strict=True))
        new._seen = dict(zip(state["samples"], state["seen"], strict=True))
        return new


def _union(
    old: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor], what: str
) -> tuple[Tensor, Tensor]:
    if old is None:
        return new
    if old[0].shape != new[0].shape:
        raise InputError(
            f"activations with {new[0].numel()} {what} follow some with {old[0].numel()}; "
            "all samples must agree"
        )
    return torch.minimum(old[0], new[0]), torch.maximum(old[1], new[1])


def _two_sided_quantiles(
    pool_NR: Tensor, percentiles: Sequence[float]
) -> dict[float, tuple[Tensor, Tensor]]:
    """Return p -> ((1-p)-quantile, p-quantile) of every column, interpolated linearly in float64.

    Only the tails are sorted; the upper one through the negated values, so that both round alike.
    """
    last = pool_NR.shape[0] - 1
    depth = min(last + 1, int((1 - min(percentiles)) * last) + 2)
    lowest = pool_NR.topk(depth, dim=0, largest=False, sorted=True).values.double()
    highest = pool_NR.topk(depth, dim=0, largest=True, sorted=True).values.double()
    found = {}
    for percentile in percentiles:
        place = (1 - percentile) * last
        rank = min(int(place), last)
        after = min(rank + 1, last)
        ends = []
        for tail in (lowest, highest):
            ends.append(torch.lerp(tail[rank], tail[after], place - rank).to(torch.float32))
        found[percentile] = ends[0], ends[1]
    return found
