"""Notes and adverts of the libraries we call that tell nothing to whoever runs our programs.

Each is filtered by its exact text, with the reason why it is harmless here; everything else passes.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

WARNED = (
    # Lightning 2.6 calls a deprecated function of torch 2.13; nothing of ours can change that
    r"`?isinstance\(treespec, LeafSpec\)`? is deprecated",
    # batches are built in the process on purpose: they are few, and their order is part of a result
    r"The '\w+_dataloader' does not have many workers which may be a bottleneck",
    # methods that only search have nothing to optimise
    r"`LightningModule\.configure_optimizers` returned `None`, this fit will run with no optimizer",
    # `table` runs the programs in its own process
    r"LightningCLI's args parameter is intended to run from within Python",
    # the metric has summed over processes by itself
    r"It is recommended to use `self\.log\('[\w/]+', \.\.\., sync_dist=True\)`",
    # a calibrated model stays in eval mode on purpose
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # a resumed run writes its configuration and logs into its own folder again
    r"Checkpoint directory .* exists and is not empty",
)
"""Beginnings of warnings."""

LOGGED = (
    # adverts for other products
    r"💡 Tip: For seamless cloud \w+ .*",
    # hardware is in the summary and the report
    r"[GTH]PU available: .*",
    r"LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES: .*",
    # quantizers compute in float32: what it advises would change results
    r"You are using a CUDA device \(.*\) that has Tensor Cores\. To properly utilize them.*",
    # the seed is in the summary and the report
    r"(\[rank: \d+\] )?Seed set to \d+",
    # counts the epoch of the final pass, which nobody asked for
    r"`Trainer\.fit` stopped: `max_epochs=\d+` reached\.",
    # Lightning's own call, of files that this program wrote
    r"`weights_only` was not set, defaulting to `False`\.",
    # matplotlib looks for fonts of formulas that our figures do not have
    r"findfont: Font family \[.*\] not found\. Falling back to .*",
)
"""Whole lines of logs."""

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.trainer.connectors.logger_connector.logger_connector",
    "matplotlib.font_manager",
)


def is_known(line: str) -> bool:
    """Say whether a line of a log is one of :data:`LOGGED`.

    Example:
        >>> is_known("Seed set to 0"), is_known("Restored all states from the checkpoint")
        (True, False)
    """
    return any(re.fullmatch(note, line.strip(), flags=re.DOTALL) for note in LOGGED)


def _passes(record: logging.LogRecord) -> bool:
    return not is_known(record.getMessage())


@contextmanager
def without_foreign_notes() -> Iterator[None]:
    """Filter the known notes while the block runs; loading bars of transformers are off, too: the
    programs show loading themselves.
    """
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    bars = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.addFilter(_passes)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for note in WARNED:
                warnings.filterwarnings("ignore", message=f"(?s){note}")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_passes)
        if bars:
            transformers_logging.enable_progress_bar()
