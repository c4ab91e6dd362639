import importlib
import pkgutil
import subprocess
import sys

import pytest

import qvlm_lightning.tasks
from qvlm_lightning.errors import InputError
from qvlm_lightning.tasks.base import Task
from qvlm_lightning.tasks.find import find_task, task_names


def test_a_task_is_a_file_that_holds_a_class_of_its_name() -> None:
    found = {}
    for file in pkgutil.iter_modules(qvlm_lightning.tasks.__path__):
        module = importlib.import_module(f"qvlm_lightning.tasks.{file.name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Task) and kind is not Task:
                found[kind.name] = kind
    assert task_names() == sorted(found)
    assert {name: find_task(name) for name in task_names()} == found


def test_other_ways_to_name_a_task() -> None:
    kind = find_task("easy_vqa")
    assert find_task("easy-vqa") is kind
    assert find_task(f"{kind.__module__}.{kind.__name__}") is kind


def test_a_module_that_lacks_something_keeps_its_traceback(tmp_path, monkeypatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        find_task("needs_more.Task")


@pytest.mark.parametrize("name", ["sing", "", ".", "qvlm_lightning.tasks", "a..b", "base"])
def test_what_is_no_task_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match="task is "):
        find_task(name)


def test_scoring_starts_without_lightning_and_datasets() -> None:
    program = (
        "import sys, qvlm_lightning.commands.score\n"
        "from qvlm_lightning.tasks.find import find_task, task_names\n"
        "[find_task(name) for name in task_names()]\n"
        "sys.exit(bool({'lightning', 'datasets'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
