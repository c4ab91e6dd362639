"""Vision towers: where their layers are, and how many tokens they make of an image."""

from typing import Any

from torch import Tensor

from qvlm_lightning.errors import InputError


def tower_path(family: Any, kind: str | None) -> str:
    """Return where the layers of a tower are in the model.

    Args:
        family: a :class:`~qvlm_lightning.models.hub.HubFamily`.
        kind: ``model_type`` of the tower; ``None`` is what the family mostly has.

    Raises:
        InputError: the family has towers of several kinds, and this is none of them.
    """
    if not family.towers or kind is None:
        return str(family.tower)
    if kind not in family.towers:
        raise InputError(
            f"the model in {family.path!r} has a vision tower of type {kind!r}, whose layers are "
            f"not known; allowed: {', '.join(map(repr, family.towers))}"
        )
    return str(family.towers[kind])


def patches(vision: Any) -> int:
    """Return the patches of one image of fixed size, from the tower's configuration."""
    return (vision.image_size // vision.patch_size) ** 2


def tiles_by_tokens(batch: dict[str, Tensor], image_token: int, tokens: int) -> list[int]:
    """Return the tiles of each sample that has an image, where every tile leads to equally many
    tokens.

    Args:
        batch: with ``input_ids`` [B, T] and ``has_image`` [B].
        image_token: id of the tokens that stand for tiles.
        tokens: how many of them a tile has.
    """
    counts = (batch["input_ids"] == image_token).sum(dim=1)[batch["has_image"]]
    return (counts // tokens).tolist()
