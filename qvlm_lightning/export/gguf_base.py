"""The full-precision GGUF file of a decoder, as llama.cpp's own converter writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvlm_lightning.errors import Foreign, InputError

ROTARY = {"llama": True, "qwen2": False, "qwen2vl": False, "qwen3": False, "qwen3vl": False}
"""Architecture -> whether the rows of queries and keys are stored pair by pair: ggml's first kind
of rotary embedding turns neighbours, transformers turns halves of a head."""

_FLOATING = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Base:
    """A base file, and what its names are in the decoder of a model.

    Args:
        path: the file.
        config: of the language model.

    Raises:
        InputError: no GGUF file, of an architecture that is not known here, or of another model.
    """

    def __init__(self, path: Path, config: Any) -> None:
        import gguf

        if not path.is_file():
            raise InputError(f"--base {str(path)!r} is no file; give the converter's output")
        with Foreign(f"--base {str(path)!r} is no usable GGUF file"):
            self.reader = gguf.GGUFReader(path)
            self.architecture = str(self.reader.fields["general.architecture"].contents())
        self.path, self.config = path, config
        if self.architecture not in ROTARY:
            raise InputError(
                f"--base {str(path)!r} is of architecture {self.architecture!r}; allowed are "
                f"{', '.join(ROTARY)}, whose layout of queries and keys is known here"
            )
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        kind = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[self.architecture]
        self.names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
        self._check_settings()

    def name(self, weight: str) -> str | None:
        """Return the name of a weight in the file; ``None`` if the architecture has none.

        Args:
            weight: its name in a language model alone, as in ``model.layers.0.mlp.up_proj.weight``.
        """
        found: str | None = self.names.get_name(weight, try_suffixes=(".weight", ".bias"))
        return found

    def heads(self, weight: str) -> int | None:
        """Return how many heads the rows of a weight belong to, where they are stored pair by pair.

        Args:
            weight: see :meth:`name`.
        """
        layer = weight.rpartition(".")[0]
        if not ROTARY[self.architecture] or not layer.endswith(("q_proj", "k_proj")):
            return None
        queries = int(self.config.num_attention_heads)
        keys = getattr(self.config, "num_key_value_heads", None) or queries
        return queries if layer.endswith("q_proj") else int(keys)

    def stored(self, weight: str, value: Tensor) -> Tensor:
        """Return a tensor [O, ...] with its rows in the file's order."""
        heads = self.heads(weight)
        return value if heads is None else pairwise(value, heads)

    def as_typed(self, name: str, value: Tensor) -> NDArray[Any]:
        """Return a floating tensor in the type that the file has for it.

        Raises:
            InputError: the file has it quantized.
        """
        made = value.detach().cpu().to(self.floating(name)).contiguous()
        return made.view(torch.uint8).numpy() if made.dtype == torch.bfloat16 else made.numpy()

    def floating(self, name: str) -> torch.dtype:
        """Return the type of a tensor.

        Raises:
            InputError: the file has it quantized.
        """
        kind = self.tensors[name].tensor_type.name
        if kind not in _FLOATING:
            raise InputError(
                f"--base {str(self.path)!r} is quantized already ({name} is {kind}); give the file "
                "of --outtype f16, bf16 or f32"
            )
        return _FLOATING[kind]

    def holds(self, name: str, value: NDArray[Any]) -> bool:
        """Return whether the file has these very values."""
        data = self.tensors[name].data
        return np.array_equal(data.reshape(-1).view(np.uint8), value.reshape(-1).view(np.uint8))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor as torch has it."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def _check_settings(self) -> None:
        """Compare numbers of the file with the configuration; those that are missing pass."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        expected = {
            "block_count": self.config.num_hidden_layers,
            "embedding_length": self.config.hidden_size,
            "feed_forward_length": self.config.intermediate_size,
            "attention.head_count": self.config.num_attention_heads,
            "attention.head_count_kv": getattr(self.config, "num_key_value_heads", None),
            "attention.layer_norm_rms_epsilon": getattr(self.config, "rms_norm_eps", None),
            "rope.freq_base": rope.get("rope_theta"),
        }
        for key, ours in expected.items():
            field = self.reader.fields.get(f"{self.architecture}.{key}")
            if field is None or ours is None:
                continue
            theirs = field.contents()
            if not np.isclose(float(theirs), float(ours), rtol=1e-5, atol=0):
                raise InputError(
                    f"--base {str(self.path)!r} is of another model: its {key} is {theirs}, this "
                    f"model's is {ours}"
                )


def pairwise(value: Tensor, heads: int) -> Tensor:
    """Return rows [O, ...] of queries or keys in the order of ggml's first rotary embedding.

    Of each head the first half of the rows alternates with the second half.

    Example:
        >>> pairwise(torch.arange(8), 2)
        tensor([0, 2, 1, 3, 4, 6, 5, 7])
    """
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape)
