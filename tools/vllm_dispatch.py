"""What vLLM's own code decides about a folder in the compressed-tensors format, without vLLM.

vLLM's wheel is unpacked, not installed. Of its modules those that decide run as they are: the
parser of the configuration, the matcher of names, the choice of a scheme and the schemes'
constructors. All others, kernels among them, are empty. Nothing of qvlm_lightning is needed:

    pip install torch compressed-tensors==0.17.0 regex
    pip download --no-deps --dest wheel vllm==0.33.0 && unzip -q wheel/vllm-*.whl -d wheel
    python tools/vllm_dispatch.py wheel FOLDER ...

Exits with 1 where vLLM leaves a quantized layer alone, takes one that is not, or has no scheme.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import struct
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

QUANTIZATION = "vllm.model_executor.layers.quantization"
REAL = (
    f"{QUANTIZATION}.base_config",
    f"{QUANTIZATION}.compressed_tensors.compressed_tensors",
    f"{QUANTIZATION}.compressed_tensors.utils",
    f"{QUANTIZATION}.compressed_tensors.schemes",
    f"{QUANTIZATION}.utils.config_utils",
    "vllm.scalar_type",
)
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
"""``packed_modules_mapping`` of vLLM's LLaVA and of its decoders."""


class Anything(type):
    """A class of classes that have every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return empty(name)


def empty(name: str) -> Any:
    """Return a class that can be called, inherited from and indexed, and does nothing."""
    body = {"__init__": lambda self, *_, **__: None, "__class_getitem__": lambda key: object}
    return Anything(name, (), body)


class Hopper:
    """The device that is asked about: compute capability 9.0."""

    def get_device_capability(self) -> Any:
        """Return it, as vLLM asks for it."""
        return types.SimpleNamespace(to_int=lambda: 90)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: False


class Module(types.ModuleType):
    """A module of vLLM that is not run."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = {"init_logger": logging.getLogger, "current_platform": Hopper()}
        made = known.get(name) or empty(name)
        setattr(self, name, made)
        return made


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Takes the modules that decide from the wheel, and makes all others up."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Return where a module comes from."""
        if name.partition(".")[0] != "vllm":
            return None
        file = self.wheel.joinpath(*name.split("."))
        if name.startswith(REAL):
            package = file / "__init__.py"
            there = package if package.is_file() else file.with_suffix(".py")
            inside = [str(file)] if there == package else None
            return importlib.util.spec_from_file_location(
                name, there, submodule_search_locations=inside
            )
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Module:
        """Return a module that is not run."""
        return Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Run nothing."""


def layers_of(folder: Path) -> dict[str, bool]:
    """Return the Linear layers of a folder's files, by the names there -> whether quantized."""
    found: dict[str, bool] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, told in header.items():
            layer, _, own = name.rpartition(".")
            if own == "weight_scale":
                found[layer] = True
            elif own == "weight" and len(told["shape"]) == 2 and "embed" not in layer:
                found.setdefault(layer, False)
    return found


def as_in_vllm(name: str) -> list[str]:
    """Return the prefixes under which vLLM may build a layer: fused, its CLIP one level deeper."""
    for fused, parts in FUSED.items():
        head, _, last = name.rpartition(".")
        if last in parts:
            name = f"{head}.{fused}"
    deeper = name.replace("vision_tower.encoder", "vision_tower.vision_model.encoder")
    return list(dict.fromkeys([name, deeper]))


def main() -> int:
    """Print for every folder which of vLLM's schemes serves how many layers."""
    logging.disable(logging.WARNING)
    sys.meta_path.insert(0, Finder(Path(sys.argv[1])))
    deciding = importlib.import_module(f"{QUANTIZATION}.compressed_tensors.compressed_tensors")
    kind: Any = type("ColumnParallelLinear", (deciding.LinearBase,), {})
    wrong = False
    for folder in map(Path, sys.argv[2:]):
        settings = json.loads((folder / "config.json").read_text())["quantization_config"]
        config = deciding.CompressedTensorsConfig.from_config(settings)
        config.packed_modules_mapping = FUSED
        counts: Counter[str] = Counter()
        prefixes = {p: on for name, on in layers_of(folder).items() for p in as_in_vllm(name)}
        for prefix, quantized in prefixes.items():
            try:
                scheme = config.get_scheme(kind(), prefix)
                said = "left alone" if scheme is None else type(scheme).__name__
            except (NotImplementedError, ValueError) as error:
                said = f"refused: {str(error).partition('for layer_name')[0].strip()}"
            odd = (said != "left alone") != quantized or said.startswith("refused")
            wrong |= odd
            counts[f"{'WRONG: ' if odd else ''}{said}"] += 1
        told = "; ".join(f"{count} {what}" for what, count in counts.most_common())
        print(f"{folder.name}: {settings['format']}: {told}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
