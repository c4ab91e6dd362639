"""The weights of an original checkpoint as those of the new model, one at a time."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.checkpoint import WeightReader
from qvlm_lightning.models.original_layout import Layout, Named
from qvlm_lightning.models.original_parts import VisionTower

IDENTITY = "multi_modal_projector.linear_2"
VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")
_CLIP = re.compile(r"^(?:vision_model\.)?((?:embeddings|encoder|pre_layrnorm|post_layernorm)\..+)")
_HUB_NAMES = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


class Pieces:
    """All tensors of the new model in the order in which their files are read."""

    def __init__(
        self,
        source: Path,
        layout: Layout,
        tower: VisionTower,
        wanted: dict[str, torch.Size],
        single: bool,
    ) -> None:
        self.source, self.wanted, self.single = source, wanted, single
        self.layout = layout
        self.parts: list[tuple[WeightReader, Callable[[str, Tensor], Named | None]]] = [
            (WeightReader(source), layout.rename)
        ]
        self.reference = tower.reference
        inside = any(_is_tower(n) for n, _ in self._renamed_names())
        if not inside and tower.folder is not None:
            self.parts.append((WeightReader(tower.folder), _clip_names))

    def _renamed_names(self) -> Iterator[tuple[str, str]]:
        """Yield (new, old) names, without reading a tensor."""
        nothing = torch.empty(3, 0)  # splits into three
        for reader, rename in self.parts:
            for old in reader.place:
                found = rename(old, nothing)
                if found is None:
                    raise InputError(
                        f"{str(reader.folder)!r} holds {old!r}, which has no place in the model"
                    )
                yield from ((new, old) for new, _ in found)

    def check(self) -> None:
        """Refuse a checkpoint that does not hold exactly the model.

        Raises:
            InputError: names the first weight that is missing, or has no place.
        """
        found = dict(self._renamed_names())
        odd = [old for new, old in found.items() if new not in self._allowed()]
        if odd:
            raise InputError(
                f"{str(self.source)!r} holds {odd[0]!r}, which has no place in the model"
            )
        missing = [n for n in self.wanted if n not in found and not self._made(n)]
        if missing and all(_is_tower(n) for n in missing):
            raise InputError(
                f"{str(self.source)!r} does not hold its vision tower {self.reference!r}; give the "
                "tower's folder with --vision-tower"
            )
        if missing:
            raise InputError(
                f"{str(self.source)!r} lacks {len(missing)} weights, such as {missing[0]!r}"
            )

    def _allowed(self) -> set[str]:
        return {*self.wanted, "lm_head.weight"}

    def _made(self, name: str) -> bool:
        return self.single and IDENTITY in name

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        like: Tensor | None = None
        for reader, rename in self.parts:
            for old, tensor in reader:
                for new, piece in rename(old, tensor) or []:
                    if new in self.wanted:
                        yield new, piece
                    if new == "model.multi_modal_projector.linear_1.weight":
                        like = piece
        if self.single:
            assert like is not None
            width = like.shape[0]
            yield f"model.{IDENTITY}.weight", torch.eye(width, dtype=like.dtype)
            yield f"model.{IDENTITY}.bias", torch.zeros(width, dtype=like.dtype)


def _is_tower(name: str) -> bool:
    return name.startswith("model.vision_tower.")


def _clip_names(name: str, tensor: Tensor) -> Named | None:
    """Rename the weights of a CLIP folder; its text half and projections are left out."""
    inner = _CLIP.match(name)
    if inner is None or name.endswith(".position_ids"):
        return []
    return [(f"model.vision_tower.{inner[1]}", tensor)]


def with_rows(tensor: Tensor, rows: int) -> Tensor:
    """Return a vocabulary matrix with ``rows`` rows: new ones repeat row 0, the unknown word, which
    no model answers with.
    """
    more = rows - tensor.shape[0]
    return tensor if more <= 0 else torch.cat([tensor, tensor[:1].expand(more, -1)])


def stored_name(name: str, model_type: str) -> str:
    """Return the name in the file: for LLaVA the one that other programs expect."""
    if model_type == "llava":
        for ours, hub in _HUB_NAMES:
            if name.startswith(ours):
                return hub + name.removeprefix(ours)
    return name
