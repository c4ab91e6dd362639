"""What another tool gets: the model, the calibration pairs of our rows, the layers to quantize."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qvlm_lightning.commands._rival_plan import RivalRow
from qvlm_lightning.commands._table_configs import TableConfigs
from qvlm_lightning.commands._table_files import config_file
from qvlm_lightning.commands._table_plan import TablePlan, stress_options
from qvlm_lightning.data.collate import collate
from qvlm_lightning.evaluation.cli import EvaluationCLI
from qvlm_lightning.files import writing_folder
from qvlm_lightning.models.family import VLMFamily, model_inputs
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.tensor_files import put_tensors, write_tensors


@dataclass(frozen=True)
class RivalInputs:
    """What all rows of one seed and stress variant are made from."""

    family: VLMFamily
    """Of the model."""
    model: Path
    """Folder that transformers reads."""
    dtype: str
    """Type of its weights, such as ``float32``."""
    base: str
    """Its fingerprint."""
    pairs: Path
    """Safetensors file of calibration pairs (:mod:`qvlm_lightning.rivals.exchange`)."""
    digest: str
    """Of that file."""


def rival_inputs(row: RivalRow) -> RivalInputs:
    """Write what the rows of one seed and stress variant are made from.

    Args:
        row: one of them.

    Raises:
        InputError: calibration pairs are missing, or also evaluated.
    """
    program = _program(row.table, row.seed, row.stress)
    data, family = program.datamodule, program.model.family
    data.setup("fit")
    tensors = {
        f"{place:05d}/{name}": value.contiguous()
        for place, sample in enumerate(data.calibration)
        for name, value in model_inputs(collate([sample], data.processor, with_answer=True)).items()
    }
    folder = row.folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rival_pairs.safetensors"
    write_tensors(path, tensors)
    model = family.load_model()
    return RivalInputs(
        family=family,
        model=_model_folder(folder.parent, family, model, data.processor, row.stress),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        base=family.fingerprint(model),
        pairs=path.absolute(),
        digest=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    )


def _program(table: TablePlan, seed: int, stress: Stress) -> EvaluationCLI:
    """Return the program of the evaluation with the calibration pairs of a row."""
    own = [option for option in table.options if option.startswith("--data.")]
    return EvaluationCLI(
        [
            f"--config={config_file(table, 'eval', table.model)}",
            f"--config={config_file(table, 'data', table.model)}",
            f"--data.init_args.seed={seed}",
            f"--data.init_args.calibration_pairs={table.pairs}",
            f"--data.init_args.search_pairs={table.search_pairs}",
            f"--data.init_args.evaluation_count={table.questions}",
            *TableConfigs(table).split,
            *stress_options(stress),
            *table.sources,
            *own,
        ]
    )


def _model_folder(
    root: Path, family: VLMFamily, model: Any, processor: Any, stress: Stress
) -> Path:
    """Return the model's own folder; of a stress variant, which no folder holds, a copy."""
    own = getattr(family, "path", None)
    if own is not None and not stress and Path(own).is_dir():
        return Path(own).absolute()
    with writing_folder(root / "rival_model") as scratch:
        model.config.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        put_tensors(scratch / "model.safetensors", state)
    return (root / "rival_model").absolute()


def layers_of(model: nn.Module, family: VLMFamily, scheme: Scheme) -> dict[str, dict[str, Any]]:
    """Return the layers that our rows quantize, and how.

    Args:
        model: in full precision; its layers are replaced.
        family: names its parts.
        scheme: of those rows.

    Returns:
        Name of the module -> ``weight_bits``, ``activation_bits``, ``group_size`` (None: one scale
        per output channel).
    """
    structure = quantize_model(model, family, scheme)
    return {
        name: {
            "weight_bits": linear.weight_quantizer.num_bits,
            "activation_bits": site.quantizer.num_bits,
            "group_size": linear.weight_quantizer.group_size,
        }
        for site in structure.sites
        for name, linear in site.linears.items()
    }
