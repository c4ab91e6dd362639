"""What benchmarks share: the machine they ran on, a clock, and tables."""

import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# transformers looks for an optional package named kernels, and would find kernels.py
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "benchmarks"]


def hardware() -> str:
    """Return processor, cores and versions in one line."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if "model name" in x), name)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {os.cpu_count()} cores, {capability}, torch {torch.__version__}"


def commit() -> str:
    """Return the commit of the project, with a plus where files differ from it."""
    told = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def clock() -> float:
    """Return seconds: of computing with one thread, so that other programs do not count; of the
    wall with several.
    """
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(calls: Sequence[Callable[[], Any]], times: int) -> float:
    """Return the time of a call that a tenth of all calls stay below.

    Args:
        calls: of the same work on different memory, so that caches do not count.
        times: how often each is called.
    """
    calls[0]()
    taken = []
    for _ in range(times):
        for call in calls:
            start = clock()
            call()
            taken.append(clock() - start)
    return sorted(taken)[len(taken) // 10]


def bandwidth() -> float:
    """Return bytes per second of one pass over memory larger than any cache."""
    large = torch.ones(2**28, dtype=torch.uint8)  # 256 MiB
    words = large.view(torch.int64)
    return large.nbytes / seconds([lambda: words.max()], 5)


def write(rows: list[dict[str, Any]], out: Path, name: str, note: str) -> None:
    """Write rows as CSV and as a Markdown table, and print the table.

    Args:
        rows: of the same keys.
        out: folder.
        name: of the files.
        note: what the table is of.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    lines = [f"{note}, {hardware()}, commit {commit()}, {time.strftime('%Y-%m-%d')}", ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(text)
