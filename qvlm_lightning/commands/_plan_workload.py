"""Workload of a calibration, read from its configuration; nothing is loaded, nothing started."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.visual_encoder import VisualEncoderOptimization
from qvlm_lightning.cli import CalibrationCLI
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.presets import built
from qvlm_lightning.quant.scheme import Scheme


class _Parsed(CalibrationCLI):
    """The calibration program up to the point where it would build something."""

    def _set_seed(self) -> None:
        """Draw nothing."""

    def before_instantiate_classes(self) -> None:
        """Leave the accelerator: it need not be here."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


@dataclass(frozen=True)
class Planned:
    """A calibration that is not run.

    Attributes:
        family: the model.
        scheme: widths and modes.
        pairs: calibration pairs.
        search_pairs: those of the search.
        batch_size: pairs of a batch, over all processes.
        processes: of the Trainer.
        depth: most layers in a block.
        method: of the search, if there is one.
        optimises: whether the tower is optimised.
        streaming: ``False``, ``True`` or ``"disk"``.
        micro_batches: parts of an optimiser's step.
        activation_checkpointing: whether layers run again for the backward pass.
    """

    family: HubFamily
    scheme: Scheme
    pairs: int
    search_pairs: int
    batch_size: int
    processes: int
    depth: int
    method: Method | None
    optimises: bool
    streaming: bool | str
    micro_batches: int
    activation_checkpointing: bool


def read(options: Sequence[str]) -> Planned:
    """Read options and files of ``train.py fit``.

    Args:
        options: of the program.

    Raises:
        InputError: the family is not one that transformers loads.
        SystemExit: the options cannot be parsed.
    """
    with warnings.catch_warnings():
        # Lightning warns where its arguments do not come from sys.argv
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        config = _Parsed(["fit", *options]).config["fit"].as_dict()
    model, data, trainer = (config[part] for part in ("model", "data", "trainer"))
    kind, given = resolve_name(model["class_path"]), model["init_args"]
    assert issubclass(kind, QuantModule)
    optimises = issubclass(kind, VisualEncoderOptimization)
    family = built(given["family"])
    if not isinstance(family, HubFamily):
        raise InputError(
            f"{type(family).__name__} cannot be planned without its weights; allowed are families "
            "of models in the Hugging Face layout"
        )
    # by what they take: which callbacks there are is the configuration's affair
    taken = [c.get("init_args") or {} for c in trainer["callbacks"] or ()]
    sizes = {name: data["init_args"][name] for name in ("search_pairs", "batch_size")}
    return Planned(
        family=family,
        scheme=Scheme.from_dict(given["scheme"]) if given.get("scheme") else Scheme(),
        pairs=data["init_args"]["calibration_pairs"],
        **sizes,
        processes=_devices(trainer["devices"]) * int(trainer["num_nodes"]),
        depth=max((t["max_depth"] for t in taken if "max_depth" in t), default=1),
        method=built(given["method"]) if given.get("method") else None,
        optimises=optimises,
        streaming=given.get("streaming") or False,
        micro_batches=given.get("micro_batches", 1),
        activation_checkpointing=given.get("activation_checkpointing", False),
    )


def _devices(given: Any) -> int:
    """Return how many devices a Trainer takes; ``auto`` and -1, all there are, count as one."""
    if isinstance(given, list):
        return len(given)
    text = str(given)
    if "," in text:
        return len([device for device in text.split(",") if device.strip()])
    return max(int(text), 1) if text.lstrip("-").isdigit() else 1
