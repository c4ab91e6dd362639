"""Patterns of module names: written out by hand, and telling apart the modules of every family."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from qvlm_lightning.export.patterns import matches, patterns_for
from qvlm_lightning.models.weight_map import stored_names
from tests.models.conftest import BUILDERS

# (name in transformers 5, name in the files) of a LLaVA of two layers each, of which some are not
# quantized; the tower has the leaf names of the decoder
TOWER = [
    (f"model.{name}", name)
    for name in (f"vision_tower.encoder.layers.{n}.self_attn.q_proj" for n in range(2))
]
DECODER = [
    (f"model.language_model.layers.{n}.{leaf}", f"language_model.model.layers.{n}.{leaf}")
    for n in range(2)
    for leaf in ("self_attn.q_proj", "mlp.down_proj")
]
HEAD = [("lm_head", "language_model.lm_head")]


def flat(modules: list[tuple[str, str]]) -> list[str]:
    return [name for names in modules for name in names]


@pytest.mark.parametrize(
    ("members", "others", "expected"),
    [
        (TOWER, DECODER + HEAD, [r"re:(.*\.)?vision_tower\..*"]),
        (HEAD, DECODER + TOWER, [r"re:(.*\.)?lm_head$"]),
        (TOWER[1:], TOWER[:1] + DECODER, [r"re:(.*\.)?encoder\.layers\.1\..*"]),
        (DECODER[1::2], DECODER[::2] + TOWER, [r"re:(.*\.)?mlp\..*"]),
        (DECODER[::2], DECODER[1::2] + TOWER, [r"re:(.*\.)?language_model\.(.*\.)?q_proj$"]),
        (DECODER[:1], DECODER[1:], [r"re:(.*\.)?0\.self_attn\..*"]),
        ([], DECODER, []),
    ],
)
def test_patterns_written_out_by_hand(members: Any, others: Any, expected: list[str]) -> None:
    assert patterns_for(members, flat(others)) == expected


def test_names_that_no_pattern_unites_get_one_each() -> None:
    """Qwen2-VL's decoder has its tower's ending, and no word of it in its stored name."""
    member = [("model.language_model.layers.0.fc1", "model.layers.0.fc1")]
    others = ["model.visual.layers.0.fc1", "visual.layers.0.fc1"]
    found = patterns_for(member, others)
    assert all(any(matches(p, name) for p in found) for name in member[0])
    assert not any(matches(p, name) for p in found for name in others)


@pytest.mark.parametrize("kind", [k for k in BUILDERS if k != "moe_llava"])
def test_any_choice_of_modules_of_a_family_is_told_apart(kind: str) -> None:
    """By both namings, of half of the modules drawn at random and of whole parts."""
    with torch.device("meta"):
        plain = BUILDERS[kind]().plain()
    names = stored_names(plain)
    linear = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear)]
    both = {n: (n, names[f"{n}.weight"].removesuffix(".weight")) for n in linear}
    drawn = torch.rand(len(linear), generator=torch.Generator().manual_seed(1)) < 0.5
    choices = [
        {name for name, chosen in zip(linear, drawn.tolist(), strict=True) if chosen},
        {name for name in linear if re.search(r"\.(language|text)_model\.", name)},
        {"lm_head"},
    ]
    for chosen in choices:
        others = [n for name in linear if name not in chosen for n in both[name]]
        found = patterns_for([both[name] for name in sorted(chosen)], others)
        for name in linear:
            for naming in both[name]:
                hit = any(re.match(p.removeprefix("re:"), naming) for p in found)
                assert hit == (name in chosen), (naming, found)
