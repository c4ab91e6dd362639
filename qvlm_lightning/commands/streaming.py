"""Calibrate a random model by streaming and report memory and time (docs/benchmarks.md)."""

import json
import platform
import resource
import tempfile
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvlm_lightning.commands._streaming_options import Options
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_json

if TYPE_CHECKING:
    from qvlm_lightning.commands._laps import Laps
    from qvlm_lightning.commands._random_model import RandomPairs


def main(argv: list[str]) -> int:
    """Make a random bfloat16 LLaVA, calibrate it and print peak memory and seconds per layer."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # they become the help
    parser = ArgumentParser(prog="qvlm streaming", description=main.__doc__)
    parser.add_class_arguments(Options, None)
    options = Options(**vars(parser.instantiate_classes(parser.parse_args(argv))))
    from qvlm_lightning.commands._random_model import (
        RandomFamily,
        RandomPairs,
        folder_name,
        make_folder,
        shape_of,
        small_shape,
    )

    check(options)
    if options.shape is None:
        given = (options.layers, options.width, options.vocabulary)
        defaults = zip(given, (24, 2048, 32000), strict=True)
        config = small_shape(*(value if x is None else x for x, value in defaults))
    else:
        config = shape_of(options.shape, options.layers)
    text = config.text_config
    search_pairs = options.pairs if options.search_pairs is None else options.search_pairs
    options = replace(
        options,
        search_pairs=search_pairs,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=text.vocab_size,
    )
    folder = options.folder / folder_name(config)
    family = RandomFamily(str(folder))
    sizes = (options.pairs, search_pairs, options.batch_size)
    data = RandomPairs(family, *sizes, tokens=options.tokens, config=config)
    if not (folder / "config.json").is_file():
        # in a process of its own, so that its memory is not ours
        made = (folder, config, options.device)
        child = get_context("spawn").Process(target=make_folder, args=made)
        child.start()
        child.join()
        if child.exitcode:
            raise InputError(f"the random model could not be made in {str(folder)!r}")
    figures = measure(options, folder, data)
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        write_json(options.json, figures)
    return 0


def check(options: Options) -> None:
    """Refuse options that cannot be, before anything is made.

    Args:
        options: of the verb.

    Raises:
        InputError: an option holds what it must not, or does not go with another.
    """
    import torch

    from qvlm_lightning.quant.scheme import Scheme

    allowed = {"method": ("rtn", "sequential", "cdm"), "device": ("cpu", "cuda")}
    for name, choices in allowed.items():
        value = getattr(options, name)
        if value not in choices:
            raise InputError(f"{name} {value!r} is not known; allowed: {', '.join(choices)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but there is no such device here; allowed: cpu")
    least = {"layers": 1, "pairs": 1, "batch_size": 1, "max_depth": 1, "steps": 0}
    least |= {"measure_every_n_epochs": 1}
    least |= {"vocabulary": 5}  # one word
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise InputError(f"{name} is {value}; allowed: {smallest} or more")
    batches = -(-options.pairs // options.batch_size)
    if options.steps % batches:
        raise InputError(
            f"steps is {options.steps}; allowed: multiples of the {batches} batches of an epoch"
        )
    pairs = options.search_pairs
    if pairs is not None and not 1 <= pairs <= options.pairs:
        raise InputError(f"search_pairs is {pairs}; allowed: 1 to {options.pairs}")
    if options.width is not None and (options.width < 128 or options.width % 128):
        raise InputError(f"width is {options.width}; allowed: multiples of 128")
    for name in ("width", "vocabulary"):
        value = getattr(options, name)
        if options.shape is not None and value is not None:
            raise InputError(
                f"{name} {value} is not allowed together with shape {str(options.shape)!r}, which "
                "has its own; leave out one of them"
            )
    if options.activation_checkpointing and options.streaming:
        raise InputError(
            "activation_checkpointing true is not allowed together with streaming true, which runs "
            "layers again anyway; allowed: streaming false"
        )
    Scheme.parse(options.scheme)


def measure(options: Options, folder: Path, data: "RandomPairs") -> dict[str, Any]:
    """Calibrate with the Trainer, as ``train.py`` does, and return the figures.

    Memory is the peak resident set of this process, less what it was after all imports, and that of
    the tensors on the device.

    Args:
        options: of the verb.
        folder: of the model.
        data: calibration pairs.
    """
    import torch

    from qvlm_lightning.artifact import copy_weights
    from qvlm_lightning.commands._laps import Laps
    from qvlm_lightning.peak_memory import host_peak
    from qvlm_lightning.vision.learned import tower_parameters

    module, callbacks = run_of(options, data)
    with torch.device("meta"):
        data.family.empty_model(torch.bfloat16)  # imports what transformers imports late
    baseline = host_peak()
    device = torch.device(options.device)
    laps = Laps(device, host_peak)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fit(options, module, callbacks, data, laps, Path(scratch))
        if module.streamed_weights is not None:
            stored = module.structure.stored
            copy_weights(Path(scratch) / "copied", module.model, module.streamed_weights, stored)
            laps.end("artifact")
    model, state = module.model, module.state
    parameters = sum(p.numel() for n, p in model.named_parameters() if "quantizer" not in n)
    plain = {name: str(x) if isinstance(x, Path) else x for name, x in asdict(options).items()}
    return {
        "options": plain,
        "parameters": parameters,
        "model_bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
        "baseline_bytes": baseline,
        "peak_bytes_above_baseline": host_peak() - baseline,
        "peak_bytes_by_step": {name: x - baseline for name, x in laps.host_bytes.items()},
        "device_peak_bytes": max(laps.device_bytes.values(), default=None),
        "device_peak_bytes_by_step": laps.device_bytes,
        "seconds": laps.seconds,
        "seconds_total": sum(laps.seconds.values()),
        "cpu_seconds": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
        "blocks": state.partition["language"],
        "layer_forwards": sum(p["layer_forwards"] for p in state.passes),
        "site_forwards": sum(p["site_forwards"] for p in state.passes),
        "percentiles": state.percentiles,
        "learned": [float(p.detach().double().sum()) for p in tower_parameters(module.structure)],
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def run_of(options: Options, data: "RandomPairs") -> tuple[Any, list[Any]]:
    """Return the module that the options ask for, and its callbacks.

    Args:
        options: of the verb.
        data: calibration pairs, whose family is the model.
    """
    from qvlm_lightning.methods import JointSearch, MinMax, SequentialSearch
    from qvlm_lightning.notebook import recipe
    from qvlm_lightning.quant.scheme import Scheme

    choices = {"rtn": MinMax, "sequential": SequentialSearch, "cdm": JointSearch}
    method, scheme = choices[options.method](), Scheme.parse(options.scheme)
    given: dict[str, Any] = {"max_depth": options.max_depth, "streaming": options.streaming}
    if not options.steps:
        return recipe(options.method, method, data.family, scheme, **given)
    given |= {
        "epochs": options.steps // len(data.calibration_batches()),
        "activation_checkpointing": options.activation_checkpointing,
        "measure_every_n_epochs": options.measure_every_n_epochs,
    }
    name = "qvlm" if options.method == "cdm" else "veo"
    return recipe(name, method, data.family, scheme, **given)


def fit(
    options: Options,
    module: Any,
    callbacks: list[Any],
    data: "RandomPairs",
    laps: "Laps",
    root: Path,
) -> None:
    """Calibrate, with a clock behind everything that happens between epochs.

    Args:
        options: of the verb.
        module: of :func:`run_of`.
        callbacks: likewise.
        data: calibration pairs.
        laps: the clock.
        root: what the run writes.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Trainer

    steps = {"EntropyRepartition": "dependency", "PercentileSearch": "search"}
    timed = [laps.start()]
    for callback in callbacks:
        timed += [callback, laps.behind(steps[type(callback).__name__])]
    trainer = Trainer(
        accelerator=options.device,
        devices=1,
        max_epochs=module.epochs + 1,
        default_root_dir=root,
        callbacks=timed,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=LightningEnvironment(),
    )
    trainer.fit(module, datamodule=data)
    laps.end("optimisation" if module.epochs else "search")
