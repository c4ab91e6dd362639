"""Benchmarks: one file each."""

from qvlm_lightning.tasks.base import Question, Task

__all__ = ["Question", "Task"]
