"""llama.cpp runs our files: tokens, and logits near those of the simulated decoder.

Needs the package ``llama_cpp`` (``pip install llama-cpp-python``, which builds llama.cpp).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qvlm_lightning.artifact import Artifact
from qvlm_lightning.export import export_gguf
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS, generate
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from tests.export.base_file import write_base
from tests.export.making import values

pytest.importorskip("llama_cpp", reason="llama.cpp is run by llama-cpp-python, not installed")
JOINED = Path(__file__).parents[2] / "runs" / "joined"  # of ``make joined``
FOLDER = JOINED if JOINED.is_dir() else WEIGHTS
OFF = PartScheme(16, 16)
SCHEME = Scheme(OFF, OFF, PartScheme(4, 16), weight_symmetric=True, group_size=32, target="gguf")
PROMPTS, LENGTH = 20, 24

# a process of its own: two copies of OpenMP in one process stop it
READER = """
import json, sys
import numpy as np
from llama_cpp import Llama
prompts = json.load(open(sys.argv[2]))
for path in sys.argv[3:]:
    model = Llama(path, n_ctx=256, n_batch=256, n_threads=1, n_threads_batch=1, logits_all=True,
                  verbose=False, type_k=0, type_v=0)
    found = []
    for prompt in prompts:
        model.reset()
        model.eval(prompt)
        found.append(model.scores[: len(prompt)].copy())
    np.save(sys.argv[1] + path.rsplit("/", 1)[1], np.stack(found))
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    """Codes of round-to-nearest: where activations are not quantized nothing else is needed."""
    family = Llava(str(FOLDER))
    model = family.load_model()
    structure = quantize_model(model, family, SCHEME, accepted=True)
    structure.enable(True)
    return Artifact(model, family.load_processor(), {"scheme": SCHEME.to_dict()}, structure)


@pytest.fixture(scope="module")
def prompts(artifact: Artifact) -> list[list[int]]:
    """Return tokens of questions that the embedded task asks."""
    text = " ".join(sample.question for sample in generate("test", 8 * PROMPTS))
    ids = artifact.processor.tokenizer(text)["input_ids"]
    return [ids[place * LENGTH : (place + 1) * LENGTH] for place in range(PROMPTS)]


@torch.no_grad()
def ours(model: Any, prompts: list[list[int]]) -> Tensor:
    """Return log probabilities of a decoder, [prompts, tokens, vocabulary] float64."""
    states = model.model.language_model(input_ids=torch.tensor(prompts)).last_hidden_state
    return torch.log_softmax(model.lm_head(states).double(), -1)


@pytest.fixture(scope="module")
def theirs(artifact: Artifact, prompts: list[list[int]], tmp_path_factory) -> dict[str, Tensor]:
    """Return by file what llama.cpp computes: of our export, and of the same values in F32."""
    root = tmp_path_factory.mktemp("files")
    plain = Llava(str(FOLDER)).load_model()
    base = write_base(root / "base.gguf", plain, dtype=np.float32)
    export_gguf(artifact, root / "out", base)
    for layer in artifact.structure.quantized:
        plain.get_submodule(layer).weight.data = values(artifact, layer).float()
    write_base(root / "f32.gguf", plain, dtype=np.float32)
    (root / "prompts").write_text(json.dumps(prompts))
    files = [str(root / "f32.gguf"), str(root / "out" / "model-q4_0.gguf"), str(base)]
    run = subprocess.run(
        [sys.executable, "-c", READER, f"{root}/logits-", str(root / "prompts"), *files],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return {
        Path(file).name: torch.log_softmax(
            torch.from_numpy(np.load(f"{root}/logits-{Path(file).name}.npy")).double(), -1
        )
        for file in files
    }


def divergence(reference: Tensor, other: Tensor) -> float:
    """Return the mean of KL(reference || other) over all positions."""
    return float((reference.exp() * (reference - other)).sum(-1).mean())


@pytest.mark.slow
def test_the_same_values_in_f32_give_the_same_logits(artifact, prompts, theirs) -> None:
    """Names, order of rows and settings are right: nothing but rounding is left."""
    reference = ours(artifact.model, prompts)
    assert divergence(reference, theirs["f32.gguf"]) < 1e-9
    assert torch.equal(reference.argmax(-1), theirs["f32.gguf"].argmax(-1))


@pytest.mark.slow
def test_our_blocks_give_nearly_the_same_logits(artifact, prompts, theirs) -> None:
    """llama.cpp rounds activations to 8 bits; the codes are ours."""
    reference = ours(artifact.model, prompts)
    assert divergence(reference, theirs["model-q4_0.gguf"]) < 2e-2


@pytest.mark.slow
def test_full_precision_is_farther_away(artifact, prompts, theirs) -> None:
    """The comparison above can fail."""
    reference = ours(artifact.model, prompts)
    near = divergence(reference, theirs["model-q4_0.gguf"])
    assert divergence(reference, theirs["base.gguf"]) > 5 * near
