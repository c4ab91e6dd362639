"""Questions about a scene: one builder per image family, and two helper families for training."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from qvlm_lightning.models.tiny.scenes import COLORS, GRID, SHAPES, SIZES, Scene, Thing
from qvlm_lightning.models.tiny.turns import Hint, Turn, lettered, option_hints, words

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
EXTREMES = {
    "leftmost": lambda t: t.column,
    "rightmost": lambda t: -t.column,
    "topmost": lambda t: t.row,
    "bottommost": lambda t: -t.row,
}


def _phrase(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


def named(scene: Scene) -> list[Thing]:
    """Objects that colour and shape together name uniquely in the scene."""
    phrases = [_phrase(t) for t in scene.things]
    return [t for t in scene.things if phrases.count(_phrase(t)) == 1]


def _hint(question: str, phrase: str, cell: int) -> Hint:
    spoken, wanted = words(question), words(phrase)
    span = range(len(spoken) - len(wanted) + 1)
    start = next(i for i in span if spoken[i : i + len(wanted)] == wanted)
    return Hint(start + len(wanted) - 1, "cell", cell)


def _about(family: str, question: str, answer: str, thing: Thing, phrase: str) -> Turn:
    hints = (_hint(question, phrase, thing.cell), Hint(-1, "target", thing.cell))
    return Turn(family, question, answer, hints=hints)


def attribute(scene: Scene, rng: Random) -> Turn | None:
    """Ask for colour, shape or size of an object that other attributes single out."""
    forms = (
        ("color", ("shape",), "{}"),
        ("color", ("size", "shape"), "{} {}"),
        ("shape", ("color",), "{} object"),
        ("shape", ("size", "color"), "{} {} object"),
        ("size", ("color", "shape"), "{} {}"),
    )
    possible: list[tuple[str, str, Thing, str]] = []
    for wanted, fields, form in forms:
        said = [tuple(getattr(t, field) for field in fields) for t in scene.things]
        for thing, values in zip(scene.things, said, strict=True):
            if said.count(values) == 1:
                possible.append((wanted, form.format(*values), thing, getattr(thing, wanted)))
    if not possible:
        return None
    kinds = sorted({f[0] for f in possible})
    kind = rng.choice(kinds)
    wanted, phrase, thing, answer = rng.choice([f for f in possible if f[0] == kind])
    return _about("attribute", f"what {wanted} is the {phrase}?", answer, thing, phrase)


def existence(scene: Scene, rng: Random) -> Turn | None:
    """Ask whether a colour and shape occur together; half the time they do not."""
    present = [(t.color, t.shape) for t in scene.things]
    if rng.random() < 0.5:
        color, shape = rng.choice(present)
        answer = "yes"
    else:
        seen_colors, seen_shapes = {c for c, _ in present}, {s for _, s in present}
        absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
        hard = [p for p in absent if p[0] in seen_colors and p[1] in seen_shapes]
        color, shape = rng.choice(hard if hard and rng.random() < 0.7 else absent)
        answer = "no"
    return Turn("existence", f"is there a {color} {shape}?", answer)


def counting(scene: Scene, rng: Random) -> Turn | None:
    """Ask how many objects share a colour, a shape or a size."""
    questions: dict[int, list[str]] = {}
    for values, field, form in (
        (COLORS, "color", "{} objects"),
        (SHAPES, "shape", "{}s"),
        (SIZES, "size", "{} objects"),
    ):
        for value in values:
            text = form.format(value).replace("crosss", "crosses")
            number = sum(getattr(t, field) == value for t in scene.things)
            questions.setdefault(number, []).append(f"how many {text} are there?")
    number = rng.choice(sorted(n for n in questions if n <= 5))
    return Turn("counting", rng.choice(questions[number]), str(number))


def extreme(scene: Scene, rng: Random) -> Turn | None:
    """Ask for an attribute of the object furthest in one direction, alone in its row or column."""
    possible = []
    for name, position in EXTREMES.items():
        for filtered in (None, *SHAPES, *COLORS):
            members = [t for t in scene.things if filtered in (None, t.shape, t.color)]
            edge = min((position(t) for t in members), default=0)
            first = [t for t in members if position(t) == edge]
            if len(members) >= 2 and len(first) == 1:
                noun = filtered if filtered in SHAPES else f"{filtered or ''} object".strip()
                for wanted in ("color", "shape"):
                    if filtered is None or getattr(first[0], wanted) != filtered:
                        possible.append((f"what {wanted} is the {name} {noun}?", wanted, first[0]))
    if not possible:
        return None
    question, wanted, thing = rng.choice(possible)
    return Turn(
        "extreme", question, getattr(thing, wanted), hints=(Hint(-1, "target", thing.cell),)
    )


def position(scene: Scene, rng: Random) -> Turn | None:
    """Ask in which row or column a named object stands."""
    things = named(scene)
    if not things:
        return None
    thing = rng.choice(things)
    line, answer = rng.choice((("row", ROWS[thing.row]), ("column", COLUMNS[thing.column])))
    phrase = _phrase(thing)
    return _about("position", f"which {line} is the {phrase} in?", answer, thing, phrase)


def neighbor(scene: Scene, rng: Random) -> Turn | None:
    """Ask for an attribute of the object in the cell next to a named object."""
    at = {(t.row, t.column): t for t in scene.things}
    pairs = [
        (t, step, at[t.row + dr, t.column + dc])
        for t in named(scene)
        for step, (dr, dc) in STEPS.items()
        if (t.row + dr, t.column + dc) in at
    ]
    if not pairs:
        return None
    thing, step, other = rng.choice(pairs)
    wanted = rng.choice(("color", "shape"))
    question = f"what {wanted} is the object {step} the {_phrase(thing)}?"
    hints = (_hint(question, _phrase(thing), thing.cell), Hint(-1, "target", other.cell))
    return Turn("neighbor", question, getattr(other, wanted), hints=hints)


def relation(scene: Scene, rng: Random) -> Turn | None:
    """Ask whether one named object stands left of, right of, above or below another."""
    things = named(scene)
    pairs = []
    for a in things:
        for b in things:
            if a.column != b.column:
                pairs.append((a, "left of" if rng.random() < 0.5 else "right of", b))
            if a.row != b.row:
                pairs.append((a, "above" if rng.random() < 0.5 else "below", b))
    if not pairs:
        return None
    a, step, b = rng.choice(pairs)
    dr, dc = STEPS[step]
    true = (a.row - b.row) * dr + (a.column - b.column) * dc > 0
    question = f"is the {_phrase(a)} {step} the {_phrase(b)}?"
    hints = (_hint(question, _phrase(a), a.cell), _hint(question, _phrase(b), b.cell))
    return Turn("relation", question, "yes" if true else "no", hints=hints)


def choice_image(scene: Scene, rng: Random) -> Turn | None:
    """Multiple choice: which of three objects is shown, or which colour a named shape has."""
    present = {_phrase(t) for t in scene.things}
    lone = [t for t in scene.things if sum(o.shape == t.shape for o in scene.things) == 1]
    if lone and rng.random() < 0.4:
        thing = rng.choice(lone)
        wrong = rng.sample([c for c in COLORS if c != thing.color], 2)
        stem, right = f"what color is the {thing.shape}?", thing.color
    else:
        colors, shapes = {t.color for t in scene.things}, {t.shape for t in scene.things}
        absent = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in present]
        hard = [p for p in absent if p.split()[0] in colors and p.split()[1] in shapes]
        wrong = rng.sample(hard if len(hard) >= 2 else absent, 2)
        stem, right = "which object is shown?", rng.choice(sorted(present))
    text, options, letter = lettered(rng, right, wrong)
    question = f"{stem} {text}"
    return Turn("choice_image", question, letter, options, option_hints(question, letter))


def locate(scene: Scene, rng: Random) -> Turn | None:
    """Training helper: name the cell of an object."""
    things = named(scene)
    if not things:
        return None
    thing = rng.choice(things)
    phrase = _phrase(thing)
    answer = f"r{thing.row}c{thing.column}"
    return _about("locate", f"where is the {phrase}?", answer, thing, phrase)


def cell(scene: Scene, rng: Random) -> Turn | None:
    """Training helper: name an attribute of what stands in a cell."""
    row, column = rng.randrange(GRID), rng.randrange(GRID)
    wanted = rng.choice(("color", "shape", "size"))
    things = [t for t in scene.things if (t.row, t.column) == (row, column)]
    answer = getattr(things[0], wanted) if things else "nothing"
    hints = (Hint(-1, "target", row * GRID + column),)
    return Turn("cell", f"what {wanted} is in r{row}c{column}?", answer, hints=hints)


Builder = Callable[[Scene, Random], "Turn | None"]
IMAGE_BUILDERS: dict[str, Builder] = {
    "attribute": attribute,
    "existence": existence,
    "counting": counting,
    "extreme": extreme,
    "position": position,
    "neighbor": neighbor,
    "relation": relation,
    "choice_image": choice_image,
}
HELPER_BUILDERS: dict[str, Builder] = {"locate": locate, "cell": cell}
