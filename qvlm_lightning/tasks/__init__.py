"""Benchmarks: one file each."""

from qvlm_lightning.data.source import Source
from qvlm_lightning.tasks.base import Question, Task
from qvlm_lightning.tasks.module import TaskData

__all__ = ["Question", "Source", "Task", "TaskData"]
