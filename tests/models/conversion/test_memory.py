"""Converting holds one output file and one tensor, whatever the size of the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

MIB = 2**20
WIDTH, INNER, VOCABULARY = 1024, 2816, 4000

PROGRAM = """
import sys, threading, time
from pathlib import Path
import transformers
from transformers import AutoTokenizer, GenerationConfig, LlavaForConditionalGeneration
from transformers import LlavaProcessor
import qvlm_lightning.models.moe_llava_model
from qvlm_lightning.models.conversion import convert

def private():
    lines = dict(x.split(":") for x in open("/proc/self/status") if ":" in x)
    return int(lines["RssAnon"].split()[0]) * 1024

before, most, done = private(), [0], False
def watch():
    while not done:
        most[0] = max(most[0], private())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
made = convert(*map(Path, sys.argv[1:3]), vision_tower=Path(sys.argv[3]),
               shard_bytes=int(sys.argv[4]))
done = True
thread.join()
print(made.nbytes, most[0] - before)
"""


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.norm.weight": (WIDTH,)}
    for name in ("model.embed_tokens", "lm_head"):
        found[f"{name}.weight"] = (VOCABULARY, WIDTH)
    for name, width in (("0", 8), ("2", WIDTH)):
        found[f"model.mm_projector.{name}.weight"] = (WIDTH, width)
        found[f"model.mm_projector.{name}.bias"] = (WIDTH,)
    for i in range(layers):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.self_attn.{x}_proj.weight": (WIDTH, WIDTH) for x in "qkvo"}
        found |= {f"{layer}.mlp.{x}_proj.weight": (INNER, WIDTH) for x in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (WIDTH, INNER)
        for norm in ("input", "post_attention"):
            found[f"{layer}.{norm}_layernorm.weight"] = (WIDTH,)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc/self/status")
def test_memory_is_that_of_one_file_and_one_tensor(tmp_path, folders) -> None:
    source = folders("v1.5")  # for its tokenizer and tower
    for file in source.glob("pytorch_model*"):
        file.unlink()
    layers = 12
    settings = json.loads((source / "config.json").read_text()) | {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": VOCABULARY,
    }
    (source / "config.json").write_text(json.dumps(settings))
    weights = {n: torch.randn(s).bfloat16() for n, s in shapes(layers).items()}
    torch.save(weights, source / "pytorch_model.bin")
    shard = 32 * MIB
    target, clip = tmp_path / "out", tmp_path / "clip"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(target), str(clip), str(shard)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    nbytes, held = map(int, done.stdout.split())
    assert nbytes > 300 * MIB
    largest = max(t.nbytes for t in weights.values())
    print(f"model {nbytes / MIB:.0f} MiB, held {held / MIB:.0f} MiB")
    assert held < shard + 2 * largest + 60 * MIB, f"{held / MIB:.0f} MiB"
