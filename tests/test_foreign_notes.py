"""What other libraries say: known notes are filtered, everything else passes."""

import logging
import warnings

import pytest
from transformers.utils import logging as transformers_logging

from qvlm_lightning.foreign_notes import LOGGED, WARNED, without_foreign_notes

LIGHTNING = "lightning.pytorch.utilities.rank_zero"


@pytest.fixture
def heard(caplog):
    """Log a line under a logger's name and return whether it was heard."""

    def say(line: str, logger: str = LIGHTNING) -> bool:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger=logger):
            logging.getLogger(logger).info(line)
        return line in caplog.messages

    return say


FONT = "findfont: Font family ['cmr10'] not found. Falling back to DejaVu Sans."
KNOWN = [
    ("💡 Tip: For seamless cloud logging and experiment tracking, try [litlogger](x)", LIGHTNING),
    ("GPU available: False, used: False", LIGHTNING),
    ("`Trainer.fit` stopped: `max_epochs=4` reached.", LIGHTNING),
    ("Seed set to 0", "lightning.fabric.utilities.seed"),
    (FONT, "matplotlib.font_manager"),
]


@pytest.mark.parametrize(("line", "logger"), KNOWN)
def test_known_notes_are_not_heard_inside_and_are_outside(heard, line, logger):
    with without_foreign_notes():
        assert not heard(line, logger)
    assert heard(line, logger)


@pytest.mark.parametrize(
    "line",
    [
        "Restoring states from the checkpoint path at last.ckpt",
        "GPU is out of memory",
        "Seed set to 0, but the model has another",
        "`Trainer.fit` stopped: `max_steps=4` reached.",
        "Something about 💡 Tip: For seamless cloud logging x",
    ],
)
def test_other_notes_are_heard(heard, line):
    with without_foreign_notes():
        assert heard(line)


def test_known_warnings_are_not_given_and_others_are():
    known = [
        "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(...)` instead.",
        "The 'train_dataloader' does not have many workers which may be a bottleneck. Consider",
        "`LightningModule.configure_optimizers` returned `None`, this fit will run with no "
        "optimizer",
        "Found 170 module(s) in eval mode at the start of training. This may lead to",
    ]
    others = ["Found 170 modules without weights", "LeafSpec", "a loader has no workers"]
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        with without_foreign_notes():
            for text in (*known, *others):
                warnings.warn(text, stacklevel=1)
    assert [str(one.message) for one in given] == others


def test_loading_bars_of_transformers_come_back():
    assert transformers_logging.is_progress_bar_enabled()
    with without_foreign_notes():
        assert not transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled()


def test_no_filter_takes_everything():
    for note in (*WARNED, *LOGGED):
        assert len(note) > 20, note
        assert not note.startswith((".*", "(?s).*"))
