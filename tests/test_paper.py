"""docs/paper.md: the names it maps equations to exist, and the ids it lists are tested."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(qvlm_lightning\.[\w.]+)`", TEXT)))


@pytest.mark.parametrize("name", NAMES)
def test_every_function_of_the_equation_map_exists(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
            break
        except ModuleNotFoundError:
            continue
    for attribute in parts[cut:]:
        found = getattr(found, attribute)


def test_every_equation_is_mapped():
    rows = re.findall(r"^\| (\d+) \|.*`qvlm_lightning\.", TEXT, flags=re.MULTILINE)
    assert rows == [str(number) for number in range(1, 11)]


def test_every_id_has_a_test():
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    tested = set()
    for name in re.findall(r"def (test_[a-z]\d+_\w*)", source):
        tested |= set(re.findall(r"_([qepsvx]\d+)(?=_)", name))
    listed = set()
    table = TEXT.partition("## Invariants")[2].partition("Left out")[0]
    for row in re.findall(r"^\| ([QEPSVX]\d[^|]*) \|", table, flags=re.MULTILINE):
        for first, last in re.findall(r"([QEPSVX]\d+)(?:-[QEPSVX](\d+))?", row):
            number = int(first[1:])
            listed |= {f"{first[0].lower()}{k}" for k in range(number, int(last or number) + 1)}
    assert listed - tested == set()
