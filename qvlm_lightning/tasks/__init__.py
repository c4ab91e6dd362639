"""Benchmarks: one file each."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvlm_lightning.data.source import Source
    from qvlm_lightning.tasks.base import Question, Task
    from qvlm_lightning.tasks.module import TaskData

__all__ = ["Question", "Source", "Task", "TaskData"]


def __getattr__(name: str) -> Any:
    """Import Lightning's and torch's seconds only for who needs them: the help of scoring does
    not.
    """
    if name == "Source":
        from qvlm_lightning.data.source import Source

        return Source
    if name in ("Question", "Task"):
        from qvlm_lightning.tasks import base

        return getattr(base, name)
    if name == "TaskData":
        from qvlm_lightning.tasks.module import TaskData

        return TaskData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
