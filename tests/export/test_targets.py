"""The table of what each format holds, in the document as the code says it."""

from pathlib import Path

from qvlm_lightning.export.compressed_config import held_as, scheme_in_vllm
from qvlm_lightning.export.layers import LayerScheme
from tools.targets import schemes, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"
START, END = "<!-- python -m tools.targets -->\n", "\n<!-- end -->"


def test_the_document_has_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.partition(START)[2].partition(END)[0].splitlines() == table()


def test_every_scheme_of_the_configurations_has_a_row() -> None:
    files = (Path(__file__).parents[2] / "configs" / "schemes").glob("*.yaml")
    assert {file.stem for file in files} <= schemes().keys()


def test_vllms_choice_by_hand() -> None:
    """What its dispatch code said of the folders of docs/export.md."""
    expected = {
        LayerScheme(4, True, 128, None, False): "WNA16",
        LayerScheme(4, True, None, 8, True): "WNA8Int",
        LayerScheme(4, True, None, 4, True): "WNA4Int",
        LayerScheme(6, True, None, 6, True): None,
        LayerScheme(4, True, None, 8, False): None,
        LayerScheme(8, True, None, 8, True): "W8A8Int8",
        LayerScheme(8, True, None, 8, False): "W8A8Int8",
        LayerScheme(8, True, 64, 8, True): None,
        LayerScheme(8, False, None, 8, True): None,
        LayerScheme(4, False, None, 4, True): None,
    }
    for scheme, chosen in expected.items():
        assert scheme_in_vllm(scheme, held_as([scheme])[scheme]) == chosen, scheme
