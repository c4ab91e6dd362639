"""Options of ``qvlm streaming``; nothing heavy is imported for them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Options:
    """What ``qvlm streaming`` takes."""

    shape: Path | None = None
    """Folder with the ``config.json`` of a LLaVA (configs/models/shapes/llava-1.5-7b)."""
    layers: int | None = None
    """Decoder layers; default those of the shape, or 24."""
    width: int | None = None
    """Of the decoder; the MLP is 2.75 times as wide. Default 2048; not together with a shape."""
    vocabulary: int | None = None
    """Tokens, 4 of them no words. Default 32000; not together with a shape."""
    pairs: int = 8
    """Calibration pairs."""
    search_pairs: int | None = None
    """The first of them, used by the search; default all."""
    batch_size: int = 8
    """Pairs of a batch."""
    tokens: int = 160
    """Tokens per pair, those of the image included (16 without a shape)."""
    method: str = "cdm"
    """``rtn``, ``sequential`` or ``cdm``."""
    max_depth: int = 3
    """Most layers in a block, for ``cdm``."""
    steps: int = 0
    """Of visual-encoder optimisation, a batch each: whole epochs."""
    measure_every_n_epochs: int = 1
    """Distance between measurements of the loss over all pairs."""
    activation_checkpointing: bool = False
    """For the steps of a model in memory: run layers again for the backward pass. A streamed model
    always does."""
    device: str = "cpu"
    """Where layers run: ``cpu`` or ``cuda``."""
    scheme: str = "w4a4"
    """Widths."""
    streaming: bool = True
    """``false`` loads the model as a whole, for comparison."""
    folder: Path = Path("runs/random-model")
    """Where the model is made, in a folder of its own, unless it is there already; about 2 bytes
    per parameter."""
    json: Path | None = None
    """Where to write the figures."""
