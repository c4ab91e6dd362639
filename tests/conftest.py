"""What every test starts from: no network, one thread, a fixed seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import that reads it
os.environ["HF_DATASETS_OFFLINE"] = "1"

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

# The same examples on every machine, and no verdict that depends on how busy it is.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _one_world() -> Iterator[None]:
    """Seed torch, and undo what a test changed: threads, default type, gradient mode."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(True)


def pytest_configure() -> None:
    # Two cores shared by OpenMP and by subprocesses: small tensors are faster on one thread.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of third-party evaluation data, which is never part of the project."""
    folder = os.environ.get("QVLM_TEST_DATA", "")
    if not folder:
        pytest.skip("QVLM_TEST_DATA is not set: third-party evaluation data is not at hand")
    if not Path(folder).is_dir():
        pytest.fail(f"QVLM_TEST_DATA is {folder!r}, which is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """Questions about images on disk: easy-VQA's layout, and as chats in ``<split>.jsonl``."""
    root = tmp_path_factory.mktemp("shapes")
    for split, side in (("train", 40), ("test", 56)):
        (root / split / "images").mkdir(parents=True)
        questions, chats = [], []
        for place, color in enumerate(("red", "green", "blue", "yellow", "black", "gray") * 2):
            size = (side + place, side)  # no two images are equal
            Image.new("RGB", size, color).save(root / split / "images" / f"{place}.png")
            questions.append([f"what color is shape {place % 5}?", color, place])
            turns = [("user", questions[-1][0]), ("assistant", color)]
            messages = [{"role": role, "content": text} for role, text in turns]
            chats.append({"image": f"{split}/images/{place}.png", "messages": messages})
        (root / split / "questions.json").write_text(json.dumps(questions))
        (root / f"{split}.jsonl").write_text("".join(f"{json.dumps(c)}\n" for c in chats))
    return root
