"""What is saved of a model beside its weights: configuration, generation settings, processor."""

import tempfile
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import Foreign


def save_settings(folder: Path, model: Any, processor: Any) -> None:
    """Write everything but the weights, in the Hugging Face layout.

    Args:
        folder: an existing folder.
        model: a transformers model.
        processor: its processor.

    Raises:
        InputError: transformers will not save a part, such as generation settings that contradict
            each other; names it.
    """
    parts = {
        "processor": processor,
        "configuration": model.config,
        "generation_config": getattr(model, "generation_config", None),
    }
    for name, part in parts.items():
        if part is not None:
            with Foreign(f"the {name} of the model cannot be saved, which an artifact needs"):
                part.save_pretrained(folder)


def check_saving(model: Any, processor: Any) -> None:
    """Save everything but the weights and throw it away, so that a fault shows before the work.

    Args:
        model: a transformers model.
        processor: its processor.

    Raises:
        InputError: see :func:`save_settings`.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_settings(Path(folder), model, processor)
