"""The law of imports (CONTRIBUTING.md): they point down the list of rooms, never up or sideways."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 300

# Every folder and file below the package, top to bottom; rooms of one row do not know each other.
ROWS = [
    {"__main__"},
    {"commands"},
    {"cli", "notebook"},
    {"callbacks"},
    {"evaluation", "calibration"},
    {"results"},
    {"vision", "estimate"},
    {"forward", "export"},
    {"methods", "artifact"},
    {"weights", "kernels"},
    {"nn"},
    {"losses"},
    {"quant"},
    {"tasks"},
    {"data"},
    {"metrics", "plots", "progress", "foreign_notes"},
    {"models"},
    {"lightning_parser"},
    {"arguments", "ranks"},
    {"exits"},
    {"tensor_files", "run_lock", "stopping"},
    {"files"},
    {"names", "finite", "presets", "time_limit", "peak_memory"},
    {"errors"},
    {"rivals"},  # programs for other environments: they know nothing of the package
]
RANK = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
DOOR = "__init__"  # the notebook's door imports lazily whatever it offers

# Narrower than the rows: room -> the only rooms that may import it.
ONLY_FOR = {
    "callbacks": {"cli", "notebook"},
    "data": {
        "commands",
        "cli",
        "notebook",
        "evaluation",
        "calibration",
        "callbacks",
        "tasks",
        "results",
    },
    "tasks": {"commands", "cli", "notebook", "evaluation", "results"},
    "metrics": {"commands", "calibration", "evaluation", "results", "tasks", "data"},
    "arguments": {"cli", "evaluation", "commands", "lightning_parser"},
    "lightning_parser": {"cli", "evaluation"},
    "ranks": {"cli", "evaluation", "commands"},
    "plots": {"commands", "callbacks", "evaluation", "results"},
}
# These know a family by its interface only, never a concrete one.
FAMILY_BY_INTERFACE = {"calibration", "estimate", "forward", "methods", "nn", "vision", "weights"}
WITHOUT_MODELS = {"quant", "losses", "metrics", "plots"}
WITH_LIGHTNING = {
    "lightning_parser",
    "arguments",
    "ranks",
    "commands",
    "cli",
    "notebook",
    "callbacks",
    "evaluation",
    "calibration",
    "data",
    "tasks",
}
# never at module level
OPTIONAL = {"triton", "vllm", "compressed_tensors", "gguf", "torchao", "lmms_eval"}
FORBIDDEN = {"torchvision", "timm"}  # their builds break CPU installations


def python(package: Path) -> list[Path]:
    """Every file of the package, those behind the symlink of callbacks/ included."""
    walk = os.walk(package, followlinks=True)
    return sorted(Path(d) / f for d, _, files in walk for f in files if f.endswith(".py"))


def imports(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Yield (dotted name, line, whether it runs at import) of every import."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    later = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno, id(node) not in later) for name in names)


def complaint(source: str, imported: str, at_import: bool) -> str | None:
    """Say what is wrong with a file of room ``source`` importing the dotted name ``imported``."""
    head, _, rest = imported.partition(".")
    if head == "callbacks":
        return "the folder's import name is qvlm_lightning.callbacks"
    if head in FORBIDDEN:
        return "breaks CPU installations"
    if head in OPTIONAL and at_import:
        return "is optional: import it inside a function"
    if head in ("lightning", "pytorch_lightning") and source not in WITH_LIGHTNING:
        return "the library works without Lightning"
    target = rest.partition(".")[0]
    if head != "qvlm_lightning" or target not in RANK or DOOR in source or source == target:
        return None
    if RANK[target] <= RANK.get(source, -1):
        return f"{target} lies above or beside {source}"
    if source not in ONLY_FOR.get(target, {source}):
        return f"only {', '.join(sorted(ONLY_FOR[target]))} may import {target}"
    if target == "models" and source in WITHOUT_MODELS:
        return f"{source} knows no models"
    if target == "models" and source in FAMILY_BY_INTERFACE and "models.family." not in imported:
        return "know a family by its interface, models.family"
    return None


WRITTEN_IN = {"kernels/triton_dense.py": "triton"}
"""Files in the language of an optional package; who needs them imports them inside a function."""


def violations(package: Path) -> list[str]:
    """Return one line per import that breaks the law."""
    found = []
    for file in python(package):
        where = file.relative_to(package)
        room = where.parts[0].removesuffix(".py")
        for name, line, at_import in imports(ast.parse(file.read_text(encoding="utf-8"))):
            problem = complaint(room, name, at_import)
            if problem and WRITTEN_IN.get(str(where)) != name.partition(".")[0]:
                found.append(f"{where}:{line} imports {name}: {problem}")
    return found


def test_imports_point_down() -> None:
    assert violations(ROOT / "qvlm_lightning") == []


def test_every_room_has_its_place() -> None:
    package = ROOT / "qvlm_lightning"
    rooms = {file.relative_to(package).parts[0].removesuffix(".py") for file in python(package)}
    assert rooms - set(RANK) == {DOOR}


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("quant/a.py", "from qvlm_lightning.nn.linear import QuantLinear", "nn lies above"),
        ("losses.py", "import qvlm_lightning.nn", "nn lies above"),
        ("methods/a.py", "from qvlm_lightning import calibration", "calibration lies above"),
        ("methods/a.py", "import lightning.pytorch as pl", "without Lightning"),
        ("methods/a.py", "from qvlm_lightning.models.llava import Llava", "by its interface"),
        ("methods/a.py", "from qvlm_lightning.data.collate import collate", "only "),
        (
            "models/a.py",
            "def f():\n    from qvlm_lightning.quant import scheme",
            "quant lies above",
        ),
        ("data/a.py", "import qvlm_lightning.methods.base", "methods lies above"),
        (
            "commands/a.py",
            "from qvlm_lightning.callbacks import ArtifactExport",
            "only cli, notebook",
        ),
        ("cli.py", "from callbacks import ArtifactExport", "qvlm_lightning.callbacks"),
        ("nn/a.py", "import triton", "inside a function"),
        ("data/a.py", "from torchvision.io import read_image", "CPU installations"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path, file: str, line: str, reason: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    (found,) = violations(tmp_path)
    assert reason in found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nn/a.py", "def f():\n    import triton"),
        ("methods/a.py", "from qvlm_lightning.models.family import VLMFamily"),
        ("data/a.py", "from qvlm_lightning.models import Tiny"),
        ("quant/a.py", "from qvlm_lightning.errors import InputError"),
        ("quant/a.py", "from qvlm_lightning.quant.scheme import Scheme"),
    ],
)
def test_what_is_allowed_passes(tmp_path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    assert violations(tmp_path) == []


# Whoever writes otherwise than through ``files``: it itself, answers as they come, a growing log,
# logs of other programs and processes, programs that know nothing of the package, what a compiler
# built, faults of the disk, a switch of the system, and what writes into a buffer or a temporary
# place that ``files`` gave.
WRITERS = {
    "files.py",
    "tensor_files.py",
    "run_lock.py",
    "calibration/checkpoint.py",
    "peak_memory.py",
    "commands/_rival_environment.py",
    "commands/_rival_run.py",
    "commands/_soak_faults.py",
    "commands/_soak_run.py",
    "commands/_table_processes.py",
    "evaluation/journal.py",
    "kernels/extension.py",
    "models/tiny/stages.py",
    "models/tiny/train.py",
    "rivals/exchange.py",
    "rivals/measured.py",
}
WRITING = re.compile(
    r"""\.write_(text|bytes)\(|\bsave_file\b|\btorch\.save\(|\.replace\(\w+\)$"""
    r"""|\bopen\([^)]*["'][rb]*[wax+][^)]*\)|\bmkstemp\b|\bos\.(replace|rename|open)\("""
)


def test_files_are_written_in_one_place() -> None:
    package = ROOT / "qvlm_lightning"
    found = {
        f"{file.relative_to(package)}: {line.strip()}"
        for file in python(package)
        if str(file.relative_to(package)) not in WRITERS
        for line in file.read_text(encoding="utf-8").splitlines()
        if WRITING.search(line)
    }
    assert found == set()


@pytest.mark.parametrize(
    "line",
    [
        'path.write_text("x")',
        'with path.open("w", encoding="utf-8") as file:',
        "save_file(tensors, path)",
        "torch.save(state, path)",
        "scratch.replace(path)",
        "os.replace(scratch, path)",
    ],
)
def test_another_writer_would_be_seen(line: str) -> None:
    assert WRITING.search(line)


def test_files_are_short() -> None:
    files = [*python(ROOT / "qvlm_lightning"), *ROOT.glob("*.py")]
    lines = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8").count("\n") for f in files}
    assert {file: count for file, count in lines.items() if count > MAX_LINES} == {}


def test_the_top_level_holds_nothing_else() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert packages == {"qvlm_lightning", "callbacks"}
