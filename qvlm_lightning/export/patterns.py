"""Regular expressions that tell one set of module names from another.

A configuration names modules that are not quantized, or that share a scheme, for programs that call
the same module by different names: ``model.vision_tower.encoder`` in transformers 5,
``vision_tower.encoder`` in the file. A list of names fits one of them only. What a pattern of this
file matches begins anywhere, and no other module of either naming is matched.
"""

import re
from collections.abc import Iterator, Sequence

_DOT = r"\."


def patterns_for(members: Sequence[tuple[str, ...]], others: Sequence[str]) -> list[str]:
    r"""Return patterns that match every name of every member and none of the other names.

    Args:
        members: modules, each by all its namings.
        others: names that must not match, of all namings.

    Returns:
        Few and general ones, with ``re:`` in front, matched from the start of a name.

    Example:
        >>> patterns_for([("model.tower.0.fc1", "tower.0.fc1")], ["model.layers.0.fc1"])
        ['re:(.*\\.)?tower\\..*']
    """
    found: list[str] = []
    for member in members:
        left = [name for name in member if not any(matches(p, name) for p in found)]
        if left:
            fitting = (p for p in _candidates(left[0]) if not _in(p, others))
            best = next((p for p in fitting if all(matches(p, name) for name in left)), None)
            own = [next(p for p in _candidates(n) if not _in(p, others)) for n in left]
            found += dict.fromkeys(own) if best is None else [best]
    return found


def matches(pattern: str, name: str) -> bool:
    r"""Return whether a pattern with ``re:`` in front matches a name as compressed-tensors has it.

    Example:
        >>> matches(r"re:(.*\.)?lm_head$", "language_model.lm_head")
        True
    """
    return re.match(pattern.removeprefix("re:"), name) is not None


def _in(pattern: str, names: Sequence[str]) -> bool:
    return any(matches(pattern, name) for name in names)


def _candidates(name: str) -> Iterator[str]:
    """Yield patterns that match ``name``, from whole parts of the model down to the name itself."""
    steps = [re.escape(step) for step in name.split(".")]
    words = [step for step in steps[:-1] if step != "model" and not step.isdigit()]
    any_layer = [r"\d+" if step.isdigit() else step for step in steps]
    for word in words:
        yield _below([word])
    for count in range(1, len(steps)):
        yield _ending(any_layer[-count:])
        for word in (step for step in steps[:-count] if step in words):
            yield _ending([word, *any_layer[-count:]], between=rf"{_DOT}(.*{_DOT})?")
    for depth in range(1, len(steps)):
        for count in range(1, depth + 1):
            yield _below(steps[depth - count : depth])
    for count in range(1, len(steps) + 1):
        yield _ending(steps[-count:])
    yield f"re:{_DOT.join(steps)}$"


def _below(steps: Sequence[str]) -> str:
    """Return a pattern of everything below a module whose name ends in these steps."""
    return rf"re:(.*\.)?{_DOT.join(steps)}\..*"


def _ending(steps: Sequence[str], between: str = "") -> str:
    """Return a pattern of names that end in these steps; ``between`` follows the first of them."""
    first, rest = steps[0], _DOT.join(steps[1:])
    return rf"re:(.*\.)?{first}{between or _DOT if rest else ''}{rest}$"
