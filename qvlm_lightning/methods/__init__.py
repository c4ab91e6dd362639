"""Ways to choose the ranges of a block, and proxies of the dependency between layers."""

from qvlm_lightning.methods.base import Method, Solution
from qvlm_lightning.methods.percentile import JointSearch, MinMax, SequentialSearch

__all__ = ["JointSearch", "Method", "MinMax", "SequentialSearch", "Solution"]
