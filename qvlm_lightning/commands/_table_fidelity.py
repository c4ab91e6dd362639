"""Fidelity of a table's rows: measured once per artifact, taken from the disk afterwards."""

from pathlib import Path
from typing import Any

import torch

from qvlm_lightning.commands._table_plan import FidelityPlan
from qvlm_lightning.data.photographs import photographs
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.fidelity import FidelityInputs, FidelityMeter
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.results.fidelity import store_fidelity, stored_fidelity
from qvlm_lightning.results.fidelity_tables import PERPLEXITY, fidelity_rows
from qvlm_lightning.results.rows import Row, figure


class TableFidelity:
    """Measures how far each row's text is from full precision's.

    Args:
        plan: on what.

    Raises:
        InputError: photographs or passage are not there.
    """

    def __init__(self, plan: FidelityPlan) -> None:
        self.plan = plan
        prompts = photographs(plan.photographs, plan.prompts, plan.count)
        for sample in prompts:
            assert sample.image is not None
            sample.image.check()  # type: ignore[union-attr]
        try:
            passage = Path(plan.passage).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"passage {plan.passage!r} cannot be read; give a text file"
            ) from error
        self.inputs = FidelityInputs(prompts, passage, plan.max_new_tokens, plan.batch_size)

    def rows(
        self,
        folder: Path,
        module: VQAEvaluation,
        processor: Any,
        device: torch.device,
    ) -> tuple[list[Row], bool]:
        """Return the rows of one variant, and whether they were measured now; of full precision the
        perplexity alone.

        Args:
            folder: where reference and results lie.
            module: the variant, built; full precision comes first.
            processor: its processor.
            device: where to compute.
        """
        assert module.model is not None
        meter = FidelityMeter(self.inputs, folder / "reference", module.base, processor)
        if module.artifact is None:
            measured = not meter.is_stored
            if measured:
                meter.store_reference(module.model.to(device))
            perplexity, tokens = meter.reference_perplexity()
            return [figure(PERPLEXITY, perplexity, None, tokens - 1)], measured
        path, key = folder / f"{module.variant.name}.json", {"source": module.source, **meter.key}
        stored = stored_fidelity(path, key)
        if stored is not None:
            return fidelity_rows(stored), False
        fidelity = meter.measure(module.model.to(device), module.variant.name)
        store_fidelity(path, key, fidelity)
        return fidelity_rows(fidelity), True
