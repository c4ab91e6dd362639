"""Stands in for the Python of another tool's environment: ``<this> <program> <folder>``.

It rounds every weight of the job to the nearest value of a symmetric grid, without any library of
ours, and counts its calls in ``calls`` beside itself.
"""

import json
import os
import sys
from pathlib import Path

TOWERS = ("language_model", "vision_tower", "multi_modal_projector")


def main() -> None:
    calls = Path(__file__).with_name("calls")
    calls.write_text((calls.read_text() if calls.exists() else "") + " ".join(sys.argv[1:]) + "\n")
    fault = os.environ.get("FAKE_FAULT")
    if sys.argv[-1] == "--versions":
        package = "auto-round" if "autoround" in sys.argv[1] else "llmcompressor"
        print(json.dumps({package: os.environ.get("FAKE_VERSION", "1.2.3")}))
        return
    if fault == "crash":
        print("a traceback\nValueError: no such layer")
        sys.exit(1)
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = Path(sys.argv[-1])
    job = json.loads((folder / "job.json").read_text())
    known = load_file(Path(job["model"]) / "model.safetensors")
    weights = {}
    for name, layer in job["layers"].items():
        weight = known[stored_name(name, known)].astype(np.float32)
        rows = weight.reshape(len(weight), -1, layer["group_size"] or weight.shape[1])
        most = 2 ** (layer["weight_bits"] - 1) - 1
        scale = np.abs(rows).max(axis=2, keepdims=True) / most
        weights[name] = (np.round(rows / scale) * scale).reshape(weight.shape)
        if fault == "shape":
            weights[name] = weights[name][:, 1:].copy()
    if fault != "nothing":
        save_file(weights, folder / "weights.safetensors")
    pairs = {name.partition("/")[0] for name in load_file(job["inputs"])}
    facts = {"seconds": 5.5, "cpu_seconds": 4.25, "notes": [f"{len(pairs)} pairs"]}
    (folder / "facts.json").write_text(json.dumps(facts))


def stored_name(name: str, known: dict) -> str:
    """The name of a module's weight in the file, which an earlier transformers has written."""
    tower = next(t for t in TOWERS if t in name)
    own = name.split(tower)[1].removeprefix(".").removeprefix("model.")
    (found,) = (key for key in known if tower in key and key.endswith(f"{own}.weight"))
    return found


if __name__ == "__main__":
    main()
