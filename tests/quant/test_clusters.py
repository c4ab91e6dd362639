"""K-means without chance, against plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.clusters import clusters


def spread(points, labels):
    """Sum of squared distances to the means of clusters, point after point."""
    total = 0.0
    for label in set(labels):
        own = [p for p, k in zip(points, labels, strict=True) if k == label]
        mean = [sum(x) / len(own) for x in zip(*own, strict=True)]
        total += sum((a - m) ** 2 for p in own for a, m in zip(p, mean, strict=True))
    return total


def test_groups_that_lie_apart_are_found():
    points = torch.tensor([[-1.0, 1], [-9, 9], [-1.1, 1], [-9, 8.8], [-1, 30], [-1, 1.2]])
    found = clusters(points, 3).tolist()
    assert len({found[0], found[2], found[5]}) == 1
    assert found[1] == found[3]
    assert len(set(found)) == 3


def test_means_move_until_every_point_is_with_the_nearest():
    """From 0 and 10, where the centers start, 5.5 is nearer to 10; from the means 3 and 8.5 not."""
    points = torch.tensor([[0.0], [4.0], [4.0], [4.0], [5.5], [10.0], [10.0]])
    found = clusters(points, 2)
    means = [float(points[found == k].mean()) for k in range(2)]
    for point, label in zip(points[:, 0].tolist(), found.tolist(), strict=True):
        assert abs(point - means[label]) <= abs(point - means[1 - label])


coordinates = st.lists(
    st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(coordinates, st.integers(1, 6))
def test_more_clusters_hold_points_no_worse_than_one(points, count):
    found = clusters(torch.tensor(points, dtype=torch.float32), count).tolist()
    assert len(found) == len(points)
    assert len(set(found)) <= count
    assert spread(points, found) <= spread(points, [0] * len(points)) + 1e-6
    assert found == clusters(torch.tensor(points, dtype=torch.float32), count).tolist()
    for a, k in zip(points, found, strict=True):
        assert all(k == other for b, other in zip(points, found, strict=True) if a == b)


def test_as_many_clusters_as_points_leave_all_apart():
    points = torch.tensor([[0.0, 1], [10, 1], [4, 1], [5, 1]])
    assert sorted(clusters(points, 4).tolist()) == [0, 1, 2, 3]
    assert sorted(clusters(points, 9).tolist()) == [0, 1, 2, 3]


def test_no_cluster_is_refused():
    with pytest.raises(InputError, match="0 clusters"):
        clusters(torch.ones(3, 2), 0)
