"""Many questions per row: the image prefix is shared, questions do not see each other.

Shape suffixes: B rows, T positions of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qvlm_lightning.models.tiny.build import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE,
    IMAGE_TOKENS,
    USER,
    vocabulary,
)
from qvlm_lightning.models.tiny.turns import Turn, words

IDS = {word: number for number, word in enumerate(vocabulary())}
HINT_KINDS = ("cell", "target", "bound", "word", "last", "letter", "fit")
PREFIX = (BOS, USER, *([IMAGE] * IMAGE_TOKENS))


@dataclass
class Packed:
    """A batch of packed rows.

    ``answer_at`` and ``hint_at`` index the flattened (row, position) grid; ``answer_at`` points
    at the last word of the prompt, whose prediction is the answer.
    """

    input_ids: Tensor
    """Token ids, B x T."""
    position_ids: Tensor
    """Position of each token as if its question were alone, B x T."""
    may_look: Tensor
    """True where a token may look, B x 1 x T x T."""
    answer_at: Tensor
    answer_id: Tensor
    family: list[str]
    hint_at: dict[str, Tensor]
    hint_value: dict[str, Tensor]


def pack(rows: list[list[Turn]], with_image: bool) -> Packed:
    """Lay questions side by side, each with the positions it would have alone.

    Args:
        rows: the questions of each row.
        with_image: whether each row starts with the image prefix.

    Returns:
        Token ids, positions, the block-diagonal causal mask (True = may look), and where answers
        and hints are.
    """
    prefix = [IDS[w] for w in PREFIX] if with_image else []
    opening = [] if with_image else [IDS[BOS], IDS[USER]]
    ids, positions, segments, answers, families = [], [], [], [], []
    hints: dict[str, list[tuple[int, int, int]]] = {kind: [] for kind in HINT_KINDS}
    for number, turns in enumerate(rows):
        row, place, part = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        for segment, turn in enumerate(turns, start=1):
            start = len(row) + len(opening)
            text = [IDS[w] for w in words(turn.question)] + [IDS[ASSISTANT]]
            last = start + len(text) - 1
            block = [*opening, *text, IDS[turn.answer], IDS[EOS]]
            row += block
            place += range(len(prefix), len(prefix) + len(block))
            part += [segment] * len(block)
            answers.append((number, last, IDS[turn.answer]))
            families.append(turn.family)
            for hint in turn.hints:
                kind = "last" if (hint.kind, hint.word) == ("word", -1) else hint.kind
                where = last if hint.word < 0 else start + hint.word
                value = IDS[hint.value] if isinstance(hint.value, str) else hint.value
                hints[kind].append((number, where, value))
        ids.append(row)
        positions.append(place)
        segments.append(part)
    length = max(map(len, ids))
    segment_BT = _padded(segments, length, -1)
    same = segment_BT[:, :, None] == segment_BT[:, None, :]
    prefix_seen = (segment_BT == 0)[:, None, :] & (segment_BT >= 0)[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    at = torch.tensor([n * length + p for n, p, _ in answers])
    hint_rows = {kind: torch.tensor(v).reshape(-1, 3) for kind, v in hints.items()}
    return Packed(
        input_ids=_padded(ids, length, 0),
        position_ids=_padded(positions, length, 0),
        may_look=((same | prefix_seen) & causal)[:, None],
        answer_at=at,
        answer_id=torch.tensor([a for _, _, a in answers]),
        family=families,
        hint_at={kind: v[:, 0] * length + v[:, 1] for kind, v in hint_rows.items()},
        hint_value={kind: v[:, 2] for kind, v in hint_rows.items()},
    )


def _padded(rows: list[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])
