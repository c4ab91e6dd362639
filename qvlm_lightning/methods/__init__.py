"""Ways to decide a block, and proxies of the dependency between layers."""

from qvlm_lightning.methods.adaround import AdaRound
from qvlm_lightning.methods.aespa import AESPA
from qvlm_lightning.methods.awq import AWQ
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.chain import Chain
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.gptq import GPTQ
from qvlm_lightning.methods.learned_rounding import LearnedRounding
from qvlm_lightning.methods.learned_transforms import LearnedTransforms
from qvlm_lightning.methods.mbq import MBQ
from qvlm_lightning.methods.observed_ranges import ObservedRanges
from qvlm_lightning.methods.percentile import JointSearch, MinMax, SequentialSearch
from qvlm_lightning.methods.range_rules import LeastSquares, MovingAverage
from qvlm_lightning.methods.rotation import Rotation
from qvlm_lightning.methods.rptq import RPTQ
from qvlm_lightning.methods.smoothquant import SmoothQuant
from qvlm_lightning.methods.token_weights import ByKind, ModalityBalance, TokenWeights, Uniform
from qvlm_lightning.methods.z_fold import ZFold

__all__ = [
    "AESPA",
    "AWQ",
    "GPTQ",
    "MBQ",
    "RPTQ",
    "AdaRound",
    "Block",
    "ByKind",
    "Chain",
    "Decision",
    "JointSearch",
    "LearnedRounding",
    "LearnedTransforms",
    "LeastSquares",
    "Method",
    "MinMax",
    "ModalityBalance",
    "MovingAverage",
    "ObservedRanges",
    "Rotation",
    "SequentialSearch",
    "SmoothQuant",
    "TokenWeights",
    "Uniform",
    "ZFold",
]
