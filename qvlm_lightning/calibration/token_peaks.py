"""The largest magnitude of every calibration token at every site, and which tokens stand out.

Real decoders have massive activations: at a few tokens, most often the first, single channels are
hundreds of times larger than anywhere else (Sun et al. 2024, "Massive Activations in Large Language
Models", arXiv:2402.17762). One range for all tokens then has next to no codes for the others.

Shapes: B samples, T tokens (patches in the tower), S rows of an expert's input, D channels, N
tokens that count.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.samples import Batch

_TINY = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Peak:
    """The token of a site that stands out most.

    Attributes:
        worst: its largest magnitude.
        median: over all tokens that count, of each token's largest magnitude; of an even number the
            lower one in the middle.
        sample: its calibration sample.
        position: of the token in its sample, counted from the first real token.
    """

    worst: float
    median: float
    sample: int
    position: int

    @property
    def ratio(self) -> float:
        """Worst by median; finite even where the median is 0."""
        return self.worst / max(self.median, _TINY)


def token_magnitudes(x_TD: Tensor) -> Tensor:
    """Return every token's largest magnitude over its channels, float32 [T], on the CPU."""
    return x_TD.detach().abs().amax(dim=-1).to(torch.float32).cpu()


def find_peak(peaks: Mapping[int, Tensor], places: Mapping[int, Tensor] | None = None) -> Peak:
    """Find the token of largest magnitude; of equal ones that of the first sample and position.

    Args:
        peaks: sample -> magnitudes of its tokens, [N].
        places: sample -> position of each of them, [N]; a sample that is missing has its tokens in
            order, without a gap.

    Raises:
        InputError: there is no token at all.
    """
    counted = [index for index in sorted(peaks) if len(peaks[index])]
    if not counted:
        raise InputError("no token has been observed; the calibration set must hold at least one")
    median = float(torch.cat([peaks[index] for index in counted]).median())
    sample = max(counted, key=lambda index: (float(peaks[index].max()), -index))
    row = int(peaks[sample].argmax())
    position = int(places[sample][row]) if places and sample in places else row
    return Peak(float(peaks[sample][row]), median, sample, position)


def recurring_positions(
    peaks: Mapping[int, Tensor], least: float, places: Mapping[int, Tensor] | None = None
) -> dict[int, int]:
    """Count in how many samples the token at a position has at least some magnitude.

    Args:
        peaks: sample -> magnitudes of its tokens, [N].
        least: the magnitude.
        places: see :func:`find_peak`.

    Returns:
        Position -> number of samples, the most frequent first, then the foremost.

    Example:
        >>> recurring_positions({0: torch.tensor([9.0, 1.0]), 1: torch.tensor([8.0, 9.0])}, 8.0)
        {0: 2, 1: 1}
    """
    found: Counter[int] = Counter()
    for index, magnitudes in peaks.items():
        rows = (magnitudes >= least).nonzero()[:, 0]
        found.update((places[index][rows] if places and index in places else rows).tolist())
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def expert_places(tokens_BS: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Return the position of every row of an expert's input, counted from the first real token.

    Args:
        tokens_BS: place of each row in the padded sequence, -1 for filling.
        mask_BT: bool, tokens that count; ``None`` for all.
    """
    if mask_BT is None:
        return tokens_BS
    return tokens_BS - mask_BT.to(tokens_BS.device).int().argmax(dim=1, keepdim=True)


def counted_tokens(batches: Sequence[Batch]) -> dict[int, list[int]]:
    """Return sample -> its token ids in the decoder from the first real one to the last.

    Args:
        batches: calibration batches with ``input_ids`` and ``attention_mask`` [B, T] and
            ``sample_index`` [B].
    """
    found: dict[int, list[int]] = {}
    for batch in batches:
        rows = zip(batch["sample_index"], batch["input_ids"], batch["attention_mask"], strict=True)
        for index, ids_T, mask_T in rows:
            real = mask_T.bool().nonzero()[:, 0]
            found[int(index)] = ids_T[real[0] : real[-1] + 1].tolist() if len(real) else []
    return found


class TokenPeaks:
    """The largest magnitude of every token that counts, per site and calibration sample.

    A sample that comes again replaces what was known of it, so that a pass may be repeated.

    Example:
        >>> peaks = TokenPeaks()
        >>> peaks.update("fc1", torch.tensor([[[0.0, 0.0], [-9.0, 1.0], [1.0, 2.0], [3.0, 0.0]]]),
        ...              torch.tensor([[False, True, True, True]]), [7])
        >>> peaks.peak("fc1")
        Peak(worst=9.0, median=3.0, sample=7, position=0)
        >>> peaks.ratio("fc1")
        3.0
    """

    def __init__(self) -> None:
        self._peaks: dict[str, dict[int, Tensor]] = {}  # site -> sample -> [N]
        self._places: dict[str, dict[int, Tensor]] = {}  # where tokens are missing in between

    def update(
        self,
        site: str,
        x_BTD: Tensor,
        mask_BT: Tensor | None,
        sample_index: Sequence[int],
        places_BT: Tensor | None = None,
    ) -> None:
        """Take in the activations of some samples.

        Args:
            site: whose input it is.
            x_BTD: activations; what the mask leaves out may hold anything.
            mask_BT: bool, tokens that count; ``None`` for all. A sample without any is passed over.
            sample_index: number of each sample in the calibration set, [B].
            places_BT: position of each row in its sample; default: the rows are in order, and the
                first one that counts has position 0.

        Raises:
            InputError: shapes do not fit to each other.
        """
        if x_BTD.dim() != 3 or len(sample_index) != x_BTD.shape[0]:
            raise InputError(
                f"activations of shape {tuple(x_BTD.shape)} came with {len(sample_index)} sample "
                "numbers; allowed is [samples, tokens, channels]"
            )
        magnitudes_BT = token_magnitudes(x_BTD)
        for row, index in enumerate(map(int, sample_index)):
            kept = torch.arange(x_BTD.shape[1])
            if mask_BT is not None:
                kept = mask_BT[row].cpu().nonzero()[:, 0]
            if not len(kept):
                continue
            place = kept - kept[0] if places_BT is None else places_BT[row].cpu()[kept]
            self._peaks.setdefault(site, {})[index] = magnitudes_BT[row][kept]
            known = self._places.setdefault(site, {})
            known.pop(index, None)
            if not torch.equal(place, torch.arange(len(kept))):
                known[index] = place

    @property
    def sites(self) -> list[str]:
        """Sites of which a token has been observed."""
        return list(self._peaks)

    def of(self, site: str) -> Mapping[int, Tensor]:
        """Return sample -> magnitudes of its tokens that count, float32 [N]; none where the site
        was never reached.
        """
        return self._peaks.get(site, {})

    def places(self, site: str) -> Mapping[int, Tensor]:
        """Return sample -> position of each of its tokens, [N]; without the samples whose tokens
        follow each other from position 0.
        """
        return self._places.get(site, {})

    def peak(self, site: str) -> Peak:
        """Return the token of a site that stands out most (see :func:`find_peak`)."""
        return find_peak(self.of(site), self.places(site))

    def ratio(self, site: str) -> float:
        """Return worst by median of a site (see :class:`Peak`)."""
        return self.peak(site).ratio

    def recurring(self, site: str, ratio: float) -> dict[int, int]:
        """Count in how many samples a position has at least ``ratio`` times the site's median (see
        :func:`recurring_positions`).
        """
        return recurring_positions(self.of(site), ratio * self.peak(site).median, self.places(site))

    def state(self, site: str) -> dict[str, Any]:
        """Return what is known of a site as plain tensors, for another process."""
        return {"peaks": dict(self.of(site)), "places": dict(self.places(site))}

    def merge(self, site: str, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned elsewhere, in any order."""
        for index, magnitudes in state["peaks"].items():
            self._peaks.setdefault(site, {})[index] = magnitudes
            self._places.setdefault(site, {}).pop(index, None)
        self._places.setdefault(site, {}).update(state["places"])
