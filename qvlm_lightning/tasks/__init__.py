"""Benchmarks: one file each."""

from typing import TYPE_CHECKING, Any

from qvlm_lightning.data.source import Source
from qvlm_lightning.tasks.base import Question, Task

if TYPE_CHECKING:
    from qvlm_lightning.tasks.module import TaskData

__all__ = ["Question", "Source", "Task", "TaskData"]


def __getattr__(name: str) -> Any:
    """Import Lightning's seconds only for who asks for the data module: scoring needs none."""
    if name == "TaskData":
        from qvlm_lightning.tasks.module import TaskData

        return TaskData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
