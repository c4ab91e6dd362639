"""K-means without chance: the same points give the same clusters everywhere.

Shapes: N points, D coordinates, K clusters.
"""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError


@torch.no_grad()
def clusters(points_ND: Tensor, count: int, rounds: int = 100) -> Tensor:
    """Return the cluster of every point, [N] int64, for a small sum of squared distances to the
    clusters' means (Lloyd's algorithm).

    The first center is the point that is farthest from the mean of all, each further one the point
    that is farthest from the centers before it. Fewer than ``count`` clusters come out where there
    are fewer different points.

    Args:
        points_ND: finite coordinates.
        count: most clusters.
        rounds: most rounds.

    Raises:
        InputError: ``count`` is below 1.

    Example:
        >>> clusters(torch.tensor([[0.0], [9.0], [1.0], [50.0]]), 3).tolist()
        [1, 2, 1, 0]
    """
    if count < 1:
        raise InputError(f"{count} clusters are not allowed; at least 1")
    points = points_ND.double()
    centers = _farthest_points(points, count)
    found = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    for _ in range(rounds):
        # matrix products would round otherwise on another machine
        mode = "donot_use_mm_for_euclid_dist"
        nearest = torch.cdist(points, centers, compute_mode=mode).argmin(dim=1)
        if torch.equal(nearest, found):
            break
        found = nearest
        sums = torch.zeros_like(centers).index_add_(0, found, points)
        size = found.bincount(minlength=len(centers))[:, None]
        centers = torch.where(size > 0, sums / size.clamp_min(1), centers)
    return found


def _farthest_points(points: Tensor, count: int) -> Tensor:
    """Return at most ``count`` different points, each farthest from those before it, [K, D]."""
    away = (points - points.mean(dim=0)).norm(dim=1)
    chosen = [points[int(away.argmax())]]
    away = (points - chosen[0]).norm(dim=1)
    while len(chosen) < min(count, len(points)) and bool(away.max() > 0):
        chosen.append(points[int(away.argmax())])
        away = torch.minimum(away, (points - chosen[-1]).norm(dim=1))
    return torch.stack(chosen)
