"""Forward hooks that are always taken off again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def taps(modules: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see(name, input)`` with the first positional input of every module, before it runs.

    Args:
        modules: name -> module.
        see: callback; the tensor is the live one (with its graph), [B, T, D].
    """

    def make(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            see(name, args[0])

        return hook

    handles = [module.register_forward_pre_hook(make(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class ReachedError(Exception):
    """Raised by :func:`stop_at` to leave a forward pass early."""


@contextmanager
def stop_at(
    module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    """Within the block, a forward pass that reaches ``module`` hands its arguments to ``see`` and
    ends there.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(args, kwargs)
        raise ReachedError

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    except ReachedError:
        pass
    finally:
        handle.remove()


@contextmanager
def differentiable_inputs(modules: list[nn.Module]) -> Iterator[None]:
    """Within the block, gradients reach back to the first input of every module.

    In front of it may be nothing but frozen weights, and then autograd would keep no graph.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not hidden.requires_grad:
            hidden.requires_grad_(True)

    handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
