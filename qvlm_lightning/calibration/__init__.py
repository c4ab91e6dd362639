"""The data flow of a calibration, and the LightningModules that run it."""

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.visual_encoder import VisualEncoderOptimization
from qvlm_lightning.vision.tower_loss import LossWeights

__all__ = ["Calibrator", "LossWeights", "QuantModule", "VisualEncoderOptimization"]
