"""auto-round (https://github.com/intel/auto-round): rounding by sign gradients.

``python run_autoround.py FOLDER``, in its own environment (:mod:`qvlm_lightning.rivals`).
"""

import sys
from pathlib import Path

PACKAGES = ("auto-round", "transformers", "torch")
STEPS = 200
"""Of the optimiser per block: its default."""
PAIRS_PER_STEP = 8
"""Its default batch. Pairs differ in length, so that each runs alone and gradients are added."""


def main() -> None:
    """Quantize the layers of a job and write their dequantized weights."""
    from exchange import Exchange, asked_for_versions

    if asked_for_versions(PACKAGES):
        return
    from auto_round import AutoRound
    from torch.utils.data import DataLoader
    from transformers import AutoProcessor

    job = Exchange(Path(sys.argv[1]))
    (kind,) = {(layer["weight_bits"], layer["group_size"]) for layer in job.layers.values()}
    bits, group = kind
    model, pairs = job.model(), job.pairs()
    model.config.name_or_path = model.name_or_path = job.job["model"]
    processor = AutoProcessor.from_pretrained(job.job["model"])
    rounder = AutoRound(
        model=model,
        tokenizer=processor.tokenizer,
        processor=processor,
        dataset=DataLoader(pairs, batch_size=None),
        scheme=f"W{bits}A16",
        bits=bits,
        group_size=group or -1,
        sym=job.job["symmetric"],
        nsamples=len(pairs),
        batch_size=1,
        gradient_accumulate_steps=PAIRS_PER_STEP,
        seqlen=max(pair["input_ids"].shape[1] for pair in pairs),
        iters=STEPS,
        seed=job.job["seed"],
        device_map="cpu",
        enable_torch_compile=False,
        low_gpu_mem_usage=False,
    )
    rounded, layers = rounder.quantize()
    found = {name for name, layer in layers.items() if layer.get("bits", 16) < 16}
    if found != set(job.layers):
        odd = sorted(found ^ set(job.layers))
        raise SystemExit(f"auto-round quantizes other layers, such as {odd[0]}")
    job.notes.append(f"{STEPS} steps")
    job.write({name: rounded.get_submodule(name).weight for name in job.layers})


if __name__ == "__main__":
    main()
