"""Qwen2.5-VL: as Qwen2-VL, with a gated MLP and windowed attention in most layers of the tower."""

from qvlm_lightning.models.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL; arguments as for :class:`HubFamily`.

    Layers with and without windows get different arguments, which calibration catches per layer.
    """

    model_types = ("qwen2_5_vl",)
