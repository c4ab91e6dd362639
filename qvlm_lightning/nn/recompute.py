"""Activation checkpointing: layers that run again when a backward pass comes to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch.utils.checkpoint import checkpoint

from qvlm_lightning.nn.structure import Unit

Held = Callable[[Sequence[Unit]], AbstractContextManager[None]]


@contextmanager
def recomputed(units: Sequence[Unit], held: Held) -> Iterator[None]:
    """Within the block, ``units`` keep of a forward pass nothing but what they were given.

    The backward pass, within the block or behind it, runs each of them again. Outputs and gradients
    are those without it, to the bit. Hooks on a unit see its first run only, hooks on modules
    inside it every run. Transformers' own checkpointing does nothing in ``eval()`` mode.

    Args:
        units: run without a key-value cache, which a second run would fill twice.
        held: makes the weights of a unit usable while it runs, the second time too.
    """
    with ExitStack() as stack:
        for unit in units:
            stack.enter_context(_recomputed(unit, held))
        yield


@contextmanager
def _recomputed(unit: Unit, held: Held) -> Iterator[None]:
    own = vars(unit.module)
    before = own.get("forward")

    def run(*args: Any, **kwargs: Any) -> Any:
        # the second run may come when the block is left and ``before`` is in place again
        now = own.get("forward")
        _put(own, before)
        try:
            with held([unit]):
                return unit.module.forward(*args, **kwargs)
        finally:
            _put(own, now)

    def forward(*args: Any, **kwargs: Any) -> Any:
        # there is no dropout in eval() mode: no random state to keep
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    own["forward"] = forward
    try:
        yield
    finally:
        _put(own, before)


def _put(own: dict[str, Any], forward: Any) -> None:
    """Make ``forward`` the module's own, over its class's; ``None`` for the class's."""
    if forward is None:
        own.pop("forward", None)
    else:
        own["forward"] = forward
