"""What a rehearsal foretells, against calibrations of whole models of random weights."""

import json

import pytest
import torch

from qvlm_lightning.__main__ import main
from qvlm_lightning.commands._plan_measured import Named, calibrated
from qvlm_lightning.commands._plan_rehearsal import Rehearsal, _line, table_of
from qvlm_lightning.commands._plan_stand_in import StandIn, patches_of, shape_like
from qvlm_lightning.commands._random_model import make_batches
from qvlm_lightning.errors import InputError
from qvlm_lightning.estimate.workload import Workload
from qvlm_lightning.methods import GPTQ, Chain, JointSearch, MinMax, Rotation, SmoothQuant
from qvlm_lightning.nn.routing import Route
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.presets import config_file
from qvlm_lightning.quant.scheme import Scheme
from tests.calibration.conftest import build_toy

CPU, TOKENS, PAIRS, BATCH = torch.device("cpu"), 28, 12, 4
W4A4 = Scheme.parse("w4a4")
PRESETS = sorted(path.stem for path in config_file("methods", "rtn").parent.glob("*.yaml"))


class Toy(StandIn):
    """A LLaVA with two tower layers that are read, and as many decoder layers as asked."""

    def __init__(self, layers: int, width: int = 16) -> None:
        config = build_toy().config
        config.vision_config.image_size = 8
        config.text_config.num_hidden_layers = layers
        config.text_config.hidden_size = width
        super().__init__(config, "float32")


def batches_of(family):
    return make_batches(PAIRS, BATCH, TOKENS, family.config)


def rehearsal_of(family, method=None, scheme=W4A4):
    model = family.load_model()
    structure = quantize_model(model, family, scheme)
    workload = Workload(PAIRS, 8, BATCH, TOKENS, 4, 1, method or MinMax())
    return Rehearsal(model, family, structure, scheme, workload, CPU)


@pytest.mark.parametrize(
    "named",
    [
        Named("rtn", MinMax()),
        pytest.param(Named("gptq", GPTQ()), marks=pytest.mark.slow),
        Named("folded", Chain([Rotation(), SmoothQuant(), GPTQ()])),
        pytest.param(
            Named("layers", JointSearch([1.0, 0.98], per="layer"), depth=2), marks=pytest.mark.slow
        ),
    ],
    ids=lambda named: named.name,
)
def test_layer_forwards_are_those_of_the_whole_calibration(named):
    family = Toy(4)
    foretold = rehearsal_of(family, named.method).forecast(named)
    batches = batches_of(family)
    took = calibrated(family, W4A4, named, batches, batches[:2], CPU)
    assert foretold.layer_forwards == sum(took.forwards.values()) > 0
    assert 0 < foretold.statistics < foretold.seconds
    assert foretold.nbytes > took.nbytes


def test_a_method_that_uses_all_pairs_takes_longer_than_one_that_searches_on_some():
    class Every(MinMax):
        pairs = "all"

    rehearsal = rehearsal_of(Toy(2))
    some, every = (rehearsal.forecast(Named("same", m)) for m in (MinMax(), Every()))
    assert list(rehearsal.rehearsed) == ["same"]
    assert every.layer_forwards * 2 == some.layer_forwards * 3  # 12 pairs against 8


def test_the_model_is_prepared():
    seen = []

    class Prepares(MinMax):
        prepares = True

        def prepare(self, parameters, family, structure):
            seen.append(len(structure.towers["language"].units))

    rehearsal_of(Toy(3)).forecast(Named("prepares", Prepares()))
    assert set(seen) == {1}


def test_a_stand_in_has_the_layers_of_the_model():
    family = Toy(3, width=32)
    structure = quantize_model(family.load_model(), family, W4A4)
    config = shape_like(structure, family, 2, 9, TOKENS)
    other = StandIn(config, "bfloat16").load_model()
    assert other.dtype == torch.bfloat16
    twin = quantize_model(other, family, W4A4)
    shapes = [
        [
            {tuple(x.weight.shape) for site in tower.units[0].sites for x in site.linears.values()}
            for tower in one.towers.values()
        ]
        for one in (structure, twin)
    ]
    assert shapes[0] == shapes[1]
    assert len(twin.towers["language"].units) == len(twin.towers["vision"].units) == 2


def test_patches_are_a_square_that_leaves_room_for_words():
    assert patches_of(577, 640) == 576
    assert patches_of(9, 20) == 4
    assert patches_of(9, 4) == 1


def test_a_line_does_not_fall():
    assert _line(3.0, 5.0, 4) == 9.0
    assert _line(3.0, 2.0, 4) == 3.0


def test_what_a_scheme_does_not_allow_is_said():
    scheme = Scheme.parse("w16a8")
    named = Named("gptq", GPTQ())
    forecast = rehearsal_of(Toy(2), scheme=scheme).forecast(named)
    assert "gptq" in forecast.refused
    assert table_of([forecast], [named], CPU).row_count == 1


def test_routed_experts_are_refused():
    family = Toy(2)
    structure = quantize_model(family.load_model(), family, W4A4)
    structure.towers["language"].sites[0].route = Route.__new__(Route)
    with pytest.raises(InputError, match="routed experts cannot be rehearsed"):
        shape_like(structure, family, 1, 4, TOKENS)


def test_presets_say_their_blocks_and_their_optimisation():
    named = {name: Named.of(name) for name in ("gptq", "cdm", "veo", "qvlm")}
    assert [x.depth for x in named.values()] == [1, 3, 1, 3]
    assert [x.optimises for x in named.values()] == [False, False, True, True]
    with pytest.raises(InputError, match="allowed: "):
        Named.of("none")


def test_the_verb_prints_and_writes_it(tmp_path, capsys):
    out = tmp_path / "plan.json"
    rooms = ("base", "methods/rtn", "schemes/w4a4", "data/tiny")
    argv = [f"--config={config_file('', 'base').parent / room}.yaml" for room in rooms]
    argv += ["--model.family=qvlm_lightning.models.tiny_family.Tiny", "--tokens=40"]
    argv += ["--data.calibration_pairs=4", "--data.search_pairs=4", "--data.batch_size=2"]
    assert main(["plan", *argv, f"--json={out}", "--rehearse"]) == 0
    (told,) = json.loads(out.read_text(encoding="utf-8"))["rehearsal"]
    assert told["method"] == "rtn"
    assert told["seconds"] > told["statistics"] > 0
    assert told["nbytes"] > 2**20
    printed = capsys.readouterr().out
    assert "Calibration, rehearsed" in printed
    assert f"{told['layer_forwards']:,}" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_cost_is_linear_in_layers(name):
    named = Named.of(name)
    parts = named.method.steps if isinstance(named.method, Chain) else [named.method]
    for one in parts:
        if hasattr(one, "steps"):
            one.steps = 3
    took = []
    for layers in (3, 6, 12):
        family = Toy(layers)
        batches = batches_of(family)
        took.append(calibrated(family, W4A4, named, batches, batches[:2], CPU))
    first, second, third = (x.forwards["language"] for x in took)
    assert third == pytest.approx(2 * second, rel=0.25 if named.depth > 1 else 0)
    assert second == pytest.approx(2 * first, rel=0.25 if named.depth > 1 else 0)
    seconds = [x.search["language"] for x in took]
    assert seconds[2] / seconds[1] < 3
    assert took[2].nbytes < 2 * max(took[1].nbytes, 2**22)
