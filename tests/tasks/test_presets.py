"""A benchmark is one file and one preset, which name each other."""

from pathlib import Path

import pytest
import yaml

from qvlm_lightning.tasks.find import find_task, task_names

PRESETS = Path(__file__).parents[2] / "configs/tasks"


def test_every_task_has_a_preset() -> None:
    assert [file.stem for file in sorted(PRESETS.glob("*.yaml"))] == task_names()


@pytest.mark.parametrize("name", task_names())
def test_a_preset_builds_its_task(name: str) -> None:
    held = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    given = held["data"]["init_args"]["task"]
    options = given.get("init_args", {})
    task = find_task(name)
    assert find_task(given["class_path"]) is task
    built = task(**options)  # an unknown mode or prompt is an error
    assert {key: getattr(built, key) for key in options} == options


@pytest.mark.parametrize("name", task_names())
def test_a_task_says_all_that_its_users_ask(name: str) -> None:
    task = find_task(name)
    assert task.splits
    assert task.layout.startswith(("a ", "an ", "the "))
    assert task.train_split is None or isinstance(task.train_split, str)
    assert (task.__doc__ or "").strip()
    assert all(function.__doc__ for function in task.prompts.values())
