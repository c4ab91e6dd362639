"""How much the loss depends on tokens of each kind, layer by layer, from one gradient pass.

MBQ (arXiv:2412.19509) weighs errors of vision and text tokens by it. Shapes: B samples, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.passes import Passes
from qvlm_lightning.forward.samples import Batch, counted, model_inputs
from qvlm_lightning.losses import IGNORED, token_nll
from qvlm_lightning.methods.block_tensors import place_of
from qvlm_lightning.models.family import ANSWER, PROMPT, VISION, VLMFamily
from qvlm_lightning.nn.distributed import all_sum, world
from qvlm_lightning.nn.structure import Tower
from qvlm_lightning.nn.taps import differentiable_inputs

KINDS = {"vision": (VISION,), "prompt": (PROMPT,), "answer": (ANSWER,), "text": (PROMPT, ANSWER)}


def modality_gradients(
    passes: Passes, tower: Tower, batches: Sequence[Batch], family: VLMFamily
) -> dict[str, dict[str, float]]:
    """Return for every layer of the decoder, and the modules at whose outputs its sites are judged,
    the mean magnitude of the loss's gradient: per sample over its tokens of a kind, then over the
    samples that have such tokens.

    The loss of a sample is the mean negative log-likelihood of its answer tokens, in full
    precision. Processes share the batches.

    Args:
        passes: run the model.
        tower: the decoder.
        batches: calibration batches, all of them in every process.
        family: knows kinds of tokens.

    Returns:
        Module -> ``vision``, ``prompt``, ``answer``, ``text`` (the latter two together) -> mean.

    Raises:
        InputError: the calibration set has no answers.
    """
    check_answers(batches)
    modules = judged(tower)
    rank, size = world()
    table = torch.zeros(len(batches), len(modules), len(KINDS), 2, dtype=torch.float64)
    with passes.structure.only(set()), torch.enable_grad():
        for number in range(rank, len(batches), size):
            _measure(passes, tower, modules, batches[number], family, table[number])
    total = all_sum(table).sum(dim=0)
    means = (total[..., 0] / total[..., 1].clamp_min(1)).tolist()
    return {
        name: dict(zip(KINDS, row, strict=True)) for name, row in zip(modules, means, strict=True)
    }


def check_answers(batches: Sequence[Batch]) -> None:
    """Refuse a calibration set that gives no gradients.

    Args:
        batches: all of them; ``labels`` [B, T], -100 where nothing is to be predicted.

    Raises:
        InputError: the calibration set has no answers.
    """
    if not any(bool((batch["labels"][:, 1:] != IGNORED).any()) for batch in batches):
        raise InputError(
            "the calibration set has no answers, whose gradients token weights need; give pairs "
            "of questions and answers, or token weights without gradients"
        )


def judged(tower: Tower) -> dict[str, nn.Module]:
    """Return by full name the units of a tower, and the modules at whose outputs sites are
    judged.
    """
    found: dict[str, nn.Module] = {}
    for unit in tower.units:
        found[unit.name] = unit.module
        for site in unit.sites:
            name = place_of(site)
            found[name] = unit.module.get_submodule(name.removeprefix(unit.name).lstrip("."))
    return found


def _measure(
    passes: Passes,
    tower: Tower,
    modules: dict[str, nn.Module],
    batch: Batch,
    family: VLMFamily,
    table: Tensor,
) -> None:
    """Add a batch to its table [modules, kinds, 2]."""
    kind = family.token_kind(batch).to(passes.device)
    kept = counted(batch).to(passes.device)
    masks = [torch.isin(kind, kind.new_tensor(of)) & kept for of in KINDS.values()]
    places = {name: place for place, name in enumerate(modules)}

    def note(name: str, gradient: Tensor) -> None:
        size_BT = gradient.detach().float().abs().mean(dim=-1).reshape(kind.shape).double()
        for column, mask in enumerate(masks):
            count = mask.sum(dim=1)
            mean = (size_BT * mask).sum(dim=1) / count.clamp_min(1)
            table[places[name], column, 0] += float(mean.sum())
            table[places[name], column, 1] += float((count > 0).sum())

    with ExitStack() as stack:
        stack.enter_context(passes.differentiable())
        stack.enter_context(differentiable_inputs([tower.units[0].module]))
        stack.enter_context(_gradients(modules, note))
        logits = passes.model(**model_inputs(batch, passes.device), use_cache=False).logits
        labels = batch["labels"].to(passes.device)
        loss, answers = logits.new_zeros((), dtype=torch.float32), 0
        for row in range(len(labels)):
            nll, count = token_nll(logits[row : row + 1], labels[row : row + 1])
            loss = loss + nll / count.clamp_min(1)
            answers += int(count)
        if answers:
            loss.backward()


@contextmanager
def _gradients(modules: dict[str, nn.Module], note: Any) -> Iterator[None]:
    """Within the block, call ``note(name, gradient)`` with the gradient of every module's output.

    A layer may run a second time for its backward pass; its first output is the one that counts.
    """
    handles = []
    seen: set[str] = set()

    def make(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if name not in seen and value.requires_grad:
                seen.add(name)
                value.register_hook(lambda gradient: note(name, gradient))

        return hook

    for name, module in modules.items():
        handles.append(module.register_forward_hook(make(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
