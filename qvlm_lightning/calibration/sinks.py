"""Which tokens of a decoder are sinks, and the keys and values of the constant first ones.

In pretrained decoders the first token, and some that recur, take attention that no other token
deserves, and carry massive activations for it (Xiao et al. 2023, arXiv:2309.17453; Sun et al. 2024,
arXiv:2402.17762). One static range for all tokens then has next to no codes for the others.

Shapes: B samples, T tokens, K tokens of the prefix, D channels, O outputs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qvlm_lightning.calibration.massive import MASSIVE
from qvlm_lightning.calibration.token_peaks import TokenPeaks, counted_tokens, positions
from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.passes import Passes
from qvlm_lightning.forward.samples import Batch, by_sample
from qvlm_lightning.models.family import VISION, VLMFamily
from qvlm_lightning.nn.distributed import gather_objects, world
from qvlm_lightning.nn.routing import observed
from qvlm_lightning.nn.structure import Site, Structure

SHARE = 0.5
"""A token is a sink if it is massive in at least this share of the samples that have it."""
AGREEMENT = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""How far keys and values of the first tokens may differ between samples, by their largest value:
rounding of one type, in batches of other shapes."""


def constant_prefix(family: VLMFamily, batches: Sequence[Batch]) -> tuple[int, ...]:
    """Return the ids of the first tokens that are the same in every sample, up to an image.

    Args:
        family: tells kinds of tokens.
        batches: calibration batches, padded on either side.

    Raises:
        InputError: not even the first token is the same, or it is an image's.
    """
    common: list[int] | None = None
    for batch in batches:
        kinds = family.token_kind(batch)
        for ids_T, kind_T, mask_T in zip(
            batch["input_ids"], kinds, batch["attention_mask"].bool(), strict=True
        ):
            ids, text = ids_T[mask_T].tolist(), (kind_T[mask_T] != VISION).tolist()
            length = text.index(False) if False in text else len(text)
            if length == 0:
                raise InputError(
                    "sink 'prefix' needs the same first tokens in every prompt, and a prompt "
                    "begins with an image, whose tokens differ; allowed here: 'none', 'bypass'"
                )
            if common is None:
                common = ids[:length]
            same = [a == b for a, b in zip(common, ids[:length], strict=False)]
            if not same[0]:
                raise InputError(
                    f"sink 'prefix' needs the same first token in every prompt; one begins with "
                    f"token {common[0]}, another with {ids[0]}: the chat template must put the "
                    "same text first; allowed here: 'none', 'bypass'"
                )
            common = common[: same.index(False) if False in same else len(same)]
    assert common is not None, "there are batches"
    return tuple(common)


def massive_positions(
    peaks: Mapping[int, Tensor], places: Mapping[int, Tensor], ratio: float = MASSIVE
) -> dict[int, set[int]]:
    """Return sample -> positions of its tokens that are massive at a site.

    Args:
        peaks: sample -> largest magnitude of each of its tokens, [N].
        places: sample -> position of each of them; a sample that is missing has all in order.
        ratio: to the median over all tokens.
    """
    if not peaks:
        return {}
    median = torch.cat(list(peaks.values())).median()
    found: dict[int, set[int]] = {}
    for sample, magnitudes in peaks.items():
        rows = (magnitudes > ratio * median).nonzero()[:, 0]
        found[sample] = set((places[sample][rows] if sample in places else rows).tolist())
    return found


def prefix_length(massive: Mapping[int, set[int]], longest: int) -> int:
    """Return how many first tokens are sinks: up to the last massive one, at least 1.

    Args:
        massive: sample -> massive positions, at any site.
        longest: constant first tokens.

    Example:
        >>> prefix_length({0: {0, 2, 7}, 1: {0, 2}}, longest=3)
        3
    """
    often = [
        place
        for place in range(longest)
        if sum(place in found for found in massive.values()) >= SHARE * len(massive)
    ]
    return max([place + 1 for place in often], default=1)


def recurring_tokens(
    massive: Mapping[int, set[int]],
    ids: Mapping[int, Sequence[int]],
    allowed: set[int],
    size: int = 1,
) -> tuple[int, ...]:
    """Return the ids that are massive in most samples that have them behind the first tokens, and
    in two at least.

    Args:
        massive: sample -> massive positions, at any site.
        ids: sample -> its token ids from the first real one.
        allowed: ids that may be named; image tokens are not.
        size: first tokens, which are sinks anyway.

    Example:
        >>> recurring_tokens({0: {0, 2}, 1: {0, 1}}, {0: [5, 6, 7], 1: [5, 7, 6]}, {6, 7})
        (7,)
    """
    hit: Counter[int] = Counter()
    there: Counter[int] = Counter()
    for sample, found in massive.items():
        tokens = ids[sample]
        there.update(set(tokens[size:]) & allowed)
        hit.update({tokens[place] for place in found if place >= size} & allowed)
    return tuple(sorted(t for t, n in hit.items() if n >= 2 and n >= SHARE * there[t]))


class SinkSearch:
    """Finds the sink tokens of a decoder from a full-precision pass over some samples.

    Args:
        structure: its ``sinks`` take down what is found.
        family: tells kinds of tokens.
        batches: all calibration batches, from which the constant first tokens are known at once.

    Raises:
        InputError: keys and values are to be stored, and the first tokens are not constant.
    """

    def __init__(self, structure: Structure, family: VLMFamily, batches: Sequence[Batch]) -> None:
        assert structure.sinks is not None
        self.structure, self.family, self.sinks = structure, family, structure.sinks
        self.sites = structure.towers["language"].sites
        try:
            self.constant = constant_prefix(family, batches)
        except InputError:
            if self.sinks.stored:
                raise
            self.constant = (-1,)  # the first token, whatever it is
        self.peaks = TokenPeaks()

    def find(self, passes: Passes, batches: Sequence[Batch], progress: Any = None) -> None:
        """Run the full-precision model over some batches and name the sinks; every process sees
        the same.

        Args:
            passes: run the model.
            batches: those of the search.
            progress: called as ``progress(what, done, of)``.
        """
        rank, size = world()
        mine = {number: batch for number, batch in enumerate(batches) if number % size == rank}
        by_name = {site.name: site for site in self.sites}

        def on_input(number: int, name: str, x: Tensor) -> None:
            self._note(by_name[name], x, mine[number])

        leaders: dict[str, torch.nn.Module] = {site.name: site.leader for site in self.sites}
        shown = partial(progress, "sink tokens") if progress else None
        passes.watch(mine, leaders, set(), on_input, progress=shown)
        for state in gather_objects({name: self.peaks.state(name) for name in by_name}):
            for name, one in state.items():
                self.peaks.merge(name, one)
        self._name(batches)

    def _note(self, site: Site, x: Tensor, batch: Batch) -> None:
        x_BTD, mask = observed(site.route, *by_sample("language", x, batch))
        rows = batch["sample_index"].tolist()
        self.peaks.update(site.name, x_BTD, mask, rows, positions(batch, site.route))

    def _name(self, batches: Sequence[Batch]) -> None:
        ids, text = counted_tokens(batches), set()
        for batch in batches:
            worded = (self.family.token_kind(batch) != VISION) & batch["attention_mask"].bool()
            text |= set(batch["input_ids"][worded].tolist())
        massive: dict[int, set[int]] = {index: set() for index in ids}
        for site in self.sites:
            found = massive_positions(self.peaks.of(site.name), self.peaks.places(site.name))
            for index, places in found.items():
                massive[index] |= places
        self.sinks.prefix = self.constant[: prefix_length(massive, len(self.constant))]
        if not self.sinks.stored:
            size = len(self.sinks.prefix)
            self.sinks.tokens = recurring_tokens(massive, ids, text, size)


class FirstKeysAndValues:
    """Keys and values of the stored first tokens, taken from a full-precision pass.

    Args:
        structure: with ``sinks`` that are stored.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.values: dict[str, tuple[int, Tensor]] = {}  # Linear layer -> sample, [K, O]

    def update(self, site: Site, x: Tensor, batch: Batch) -> None:
        """Take in the input of a site whose Linear layers store what they give.

        Args:
            site: of a decoder layer.
            x: its live input in full precision, [B, T, D].
            batch: of the pass.

        Raises:
            InputError: the keys and values of two samples differ.
        """
        sinks = self.structure.sinks
        linears = {n: x for n, x in site.linears.items() if x.sink_output is not None}
        if sinks is None or not linears:
            return
        place = sinks.places(batch["input_ids"], batch["attention_mask"]).to(x.device)
        size = len(sinks.prefix)
        first = (place >= 0) & (place < size)
        rows = x[first].reshape(len(x), size, x.shape[-1])
        for name, linear in linears.items():
            given = F.linear(rows, linear.weight, linear.bias)
            for sample, value in zip(batch["sample_index"].tolist(), given, strict=True):
                self._take(name, sample, value)

    def _take(self, name: str, sample: int, value: Tensor) -> None:
        known = self.values.get(name)
        if known is None or sample < known[0]:
            self.values[name] = sample, value.detach().clone()
        if known is None:
            return
        gap = (value.float() - known[1].float()).abs().max() / known[1].float().abs().max()
        if not gap <= AGREEMENT.get(value.dtype, AGREEMENT[torch.bfloat16]):
            raise InputError(
                f"sink 'prefix' stores keys and values of the first tokens, and at {name} those of "
                f"samples {known[0]} and {sample} differ by {float(gap):.1%} of the largest: the "
                "first tokens see later ones; allowed here: 'none', 'bypass'"
            )

    def store(self) -> None:
        """Put the values of the first sample into the model, the same in every process.

        Raises:
            InputError: the keys and values of two processes differ.
        """
        mine = {name: (sample, value.cpu()) for name, (sample, value) in self.values.items()}
        self.values = {}
        for theirs in gather_objects(mine):
            for name, (sample, value) in theirs.items():
                self._take(name, sample, value)
        for site in self.structure.sites:
            for name, linear in site.linears.items():
                if linear.sink_output is not None:
                    value = self.values[name][1]
                    device = linear.weight_quantizer.clip_ratio.device
                    linear.sink_output.hold(tuple(value.shape), value.dtype, device)
                    linear.sink_output.value = value.to(device)
