"""The hub where there is no network: what is stored here serves at once, anything else fails at
once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qvlm_lightning.errors import Foreign, InputError

_SECONDS = 3.0


@contextmanager
def stored_if_unreachable(*settings: Any) -> Iterator[None]:
    """Within the block, do not ask the hub if it does not answer.

    Otherwise every file of a repository is asked for six times, with growing pauses: minutes, also
    where all of them are stored here.

    Args:
        settings: modules of other libraries that keep a ``HF_HUB_OFFLINE`` of their own.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers():
        yield
        return
    held = [(each, each.HF_HUB_OFFLINE) for each in (constants, *settings)]
    try:
        for each, _ in held:
            each.HF_HUB_OFFLINE = True
        yield
    finally:
        for each, value in held:
            each.HF_HUB_OFFLINE = value


def _answers() -> bool:
    """Return whether the hub, or its mirror, says anything."""
    from huggingface_hub import constants, get_session

    try:
        with Foreign("the hub does not answer"):
            get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except InputError:
        return False
    return True
