"""Pictures show what they were given."""

import sys

import pytest
import torch

from qvlm_lightning.plots import clip_histogram_figure, partition_figure, percentile_figure

DEPENDENCY = {"vision": [0.9, 1.1, 0.7], "language": [1.2, 0.8]}
PARTITION = {
    "language": [[0, 1], [2, 2]],
    "vision": [[0, 0], [1, 2], [3, 3]],
    "projector": [[0, 0]],
}


def test_partition_panels_follow_the_forward_pass() -> None:
    figure = partition_figure(DEPENDENCY, {"vision": 0.9, "language": 1.0}, PARTITION)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["vision: 4 layers in 3 blocks", "language: 3 layers in 2 blocks"]


def test_partition_shows_every_edge_between_its_layers() -> None:
    axes = partition_figure(DEPENDENCY, {"vision": 0.9}, PARTITION).axes[0]
    dependency, threshold = axes.get_lines()
    assert dependency.get_xdata().tolist() == [0.5, 1.5, 2.5]
    assert list(dependency.get_ydata()) == DEPENDENCY["vision"]
    assert set(threshold.get_ydata()) == {0.9}


def test_partition_bands_are_the_blocks() -> None:
    axes = partition_figure(DEPENDENCY, {}, PARTITION).axes[0]
    bands = [(band.get_x(), band.get_x() + band.get_width()) for band in axes.patches]
    assert [(round(a), round(b)) for a, b in bands] == [(0, 0), (1, 2), (3, 3)]
    assert len({band.get_facecolor() for band in axes.patches}) == 3


def test_partition_of_a_single_layer_alone() -> None:
    figure = partition_figure({}, {}, {"projector": [[0, 0]]})
    assert figure.axes[0].get_title() == "projector: 1 layer in 1 block"


def test_percentiles_are_layers_by_sites() -> None:
    percentiles = {
        "model.vision.layers.0.attn_in": 1.0,
        "model.vision.layers.0.o_in": 0.985,
        "model.vision.layers.1.attn_in": 0.98,
        "projector.linear_1_in": 0.99,
    }
    tower, projector = percentile_figure(percentiles).axes[:2]
    assert [label.get_text() for label in tower.get_xticklabels()] == ["attn_in", "o_in"]
    assert [label.get_text() for label in tower.get_yticklabels()] == ["0", "1"]
    table = tower.images[0].get_array()
    assert table.filled(float("nan"))[0].tolist() == pytest.approx([1.0, 0.985])
    assert bool(table.mask[1, 1])  # layer 1 has no o_in: an empty cell, not a zero
    assert projector.get_title() == "projector"


def test_clip_bounds_are_drawn_where_the_quantizer_clips() -> None:
    figure = clip_histogram_figure({"a.b": (torch.randn(500), -0.5, 0.75)})
    bounds = {line.get_xdata()[0] for line in figure.axes[0].get_lines()}
    assert bounds == {-0.5, 0.75}


def test_clip_panels_left_over_are_empty() -> None:
    clips = {f"layer.{i}.x": (torch.zeros(3), 0.0, 1.0) for i in range(5)}
    axes = clip_histogram_figure(clips).axes
    assert [panel.axison for panel in axes] == [True] * 5 + [False] * 3


@pytest.mark.parametrize("draw", [percentile_figure, clip_histogram_figure])
def test_nothing_to_draw_is_an_empty_picture(draw) -> None:
    draw({}).canvas.draw()


def test_no_global_state_of_pyplot_is_touched() -> None:
    partition_figure(DEPENDENCY, {}, PARTITION).canvas.draw()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
