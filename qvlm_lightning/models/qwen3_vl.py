"""Qwen3-VL: packed patches as in Qwen2-VL; features also leave the tower halfway (deepstack)."""

from typing import Any

from qvlm_lightning.models.family import Named
from qvlm_lightning.models.hub import named_layers
from qvlm_lightning.models.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """Qwen3-VL; arguments as for :class:`HubFamily`.

    Features of some tower layers pass a merger of their own and are added between the first
    decoder layers: every merger is a tower of its own, and what they add is replayed.
    """

    model_types = ("qwen3_vl",)
    connector_norm = "norm"
    sites = Qwen2VL.sites | {
        "mlp_in": (*Qwen2VL.sites["mlp_in"], "mlp.linear_fc1"),
        "down_in": (*Qwen2VL.sites["down_in"], "mlp.linear_fc2"),
        "first_in": ("linear_fc1",),
        "second_in": ("linear_fc2",),
    }

    def projectors(self, model: Any) -> dict[str, Named]:
        """Return the mergers of the deepstack features and the one at the tower's end."""
        depths = named_layers(model, "model.visual.deepstack_merger_list")
        extra = {f"projector.deepstack_{i}": named for i, named in enumerate(depths)}
        return extra | super().projectors(model)
