"""What calibrations cost, from the file in their run folders."""

from qvlm_lightning.commands._table_calibrations import SECONDS, Calibration
from qvlm_lightning.errors import parse_json
from qvlm_lightning.results.rows import Row, figure

_METRICS = {
    "seconds": "calibration_seconds",
    "cpu_seconds": "calibration_cpu_seconds",
    "peak_bytes": "peak_bytes",
}


def calibration_costs(calibration: Calibration | None, pairs: int) -> list[Row]:
    """Return what is known of the costs of a calibration; nothing of full precision.

    Args:
        calibration: that has ended; ``None`` for full precision.
        pairs: calibration pairs.
    """
    path = None if calibration is None else calibration.folder / SECONDS
    if path is None or not path.is_file():
        return []
    costs = parse_json(path.read_text(encoding="utf-8"))
    known = [(metric, costs.get(name)) for name, metric in _METRICS.items()]
    return [figure(metric, cost, None, pairs) for metric, cost in known if cost is not None]
