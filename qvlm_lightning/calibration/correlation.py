"""Does a proxy of the dependency rank the edges as the discretisation error difference does?"""

from typing import TYPE_CHECKING

import torch

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.methods import proxies
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.progress import bar
from qvlm_lightning.quant.scheme import Scheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORACLE = "ded"
PROXIES: dict[str, proxies.Proxy] = {
    "cond_entropy": proxies.ConditionalEntropy(),
    "entropy": proxies.Entropy(),
    "mutual_info": proxies.MutualInformation(),
    "quant_error": proxies.QuantizationError(),
    ORACLE: proxies.DiscretizationErrorDifference(),
}

Edges = dict[str, dict[str, list[float]]]


def measure(family: VLMFamily, data: VQADataModule, scheme: Scheme) -> Edges:
    """Return proxy -> tower -> value per edge.

    Args:
        family: the model.
        data: calibration pairs; its seed is that of the draws.
        scheme: widths of the quantized pairs of layers.
    """
    calibrator = Calibrator(
        family.load_model(),
        family,
        scheme,
        data.calibration_batches(),
        data.search_batches(),
        seed=data.seed,
    )
    calibrator.collect()
    values: Edges = {}
    for count, (name, proxy) in enumerate(PROXIES.items()):
        calibrator.repartition(["vision", "language"], proxy)
        values[name] = {t: list(v) for t, v in calibrator.state.dependency.items()}
        bar(f"seed {data.seed}", count + 1, len(PROXIES))
    return values


def correlate(values: list[Edges]) -> dict[str, dict[str, float]]:
    """Return proxy -> tower -> Spearman correlation with the oracle over edges and seeds.

    Args:
        values: :func:`measure` per seed.
    """
    from torchmetrics.functional import spearman_corrcoef

    table: dict[str, dict[str, float]] = {}
    for name in values[0]:
        if name == ORACLE:
            continue
        table[name] = {}
        for tower in values[0][name]:
            ours = torch.tensor([v for one in values for v in one[name][tower]])
            oracle = torch.tensor([v for one in values for v in one[ORACLE][tower]])
            table[name][tower] = float(spearman_corrcoef(ours, oracle))
    return table


def draw(values: list[Edges]) -> "Figure":
    """Draw the conditional entropy of every edge against its discretisation error difference."""
    from matplotlib.figure import Figure

    towers = list(values[0][ORACLE])
    figure = Figure(figsize=(4.5 * len(towers), 3.6), layout="constrained")
    for axes, tower in zip(figure.subplots(1, len(towers), squeeze=False)[0], towers, strict=True):
        for seed, one in enumerate(values):
            axes.scatter(
                one["cond_entropy"][tower], one[ORACLE][tower], label=f"calibration set {seed}"
            )
        axes.set(title=tower, xlabel="H(next | this), nats", ylabel="J sequential - J joint")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
