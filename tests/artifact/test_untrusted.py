"""What a hostile artifact, run folder or model folder may not do."""

import json
import time
from pathlib import Path

import pytest
import torch

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.artifact.untrusted import check_sizes, checked_manifest
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.questions_of_runs import open_questions_of_runs
from qvlm_lightning.models.checkpoint import WeightReader
from qvlm_lightning.quant.scheme import Scheme


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("method", ["../../x", "a/b", "/etc/x", "", "x" * 65, 3, None, "a\nb"])
def test_a_method_that_is_no_name_is_refused(folder, method):
    rewrite(folder / "quantization.json", method=method)
    with pytest.raises(InputError, match=r"its method .* is not allowed"):
        load_artifact(folder)


@pytest.mark.parametrize("seed", ["../x", "1", 1.5, [1], True])
def test_a_seed_is_an_integer(folder, seed):
    rewrite(folder / "quantization.json", seed=seed)
    with pytest.raises(InputError, match="its seed is"):
        load_artifact(folder)


@pytest.mark.parametrize("ids", ["abc", [1], {"a": 1}])
def test_calibration_ids_are_texts(folder, ids):
    rewrite(folder / "quantization.json", calibration_ids=ids)
    with pytest.raises(InputError, match="its calibration_ids are no list"):
        load_artifact(folder)


def test_names_of_scheme_and_mode_are_those_of_the_scheme(folder):
    rewrite(folder / "quantization.json", scheme_name="../../x", activation_mode="../y")
    manifest = load_artifact(folder).manifest
    assert (manifest["scheme_name"], manifest["activation_mode"]) == ("w4a4", "static_tensor")


def test_a_manifest_keeps_what_is_harmless():
    said = {"method": "cdm", "seed": 3, "calibration_ids": ["a"], "more": [1]}
    assert said.items() <= checked_manifest(said, Scheme()).items()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers 1000000000"),
        ({"num_hidden_layers": 1001}, "num_hidden_layers 1001"),
        ({"vision_config": {"image_size": 10**12}}, "image_size"),
        ({"text_config": {"vocab_size": 10**6, "hidden_size": 10**6}}, "more than its 6 weights"),
        ({"num_layers": float("nan")}, "num_layers nan"),
    ],
)
def test_sizes_that_no_file_holds_are_refused(config, words):
    with pytest.raises(InputError, match=words):
        check_sizes(config, {"w": torch.zeros(2, 3)})


def test_a_configuration_of_a_billion_layers_is_refused_before_a_model_is_built(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**9
    (folder / "config.json").write_text(json.dumps(config))
    start = time.perf_counter()
    with pytest.raises(InputError, match="num_hidden_layers 1000000000"):
        load_artifact(folder)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", ["quantization.json", "config.json"])
def test_deep_json_is_a_sentence(folder, name):
    (folder / name).write_text('{"a":' * 100_000)
    with pytest.raises(InputError, match=r"nested too deeply|is broken"):
        load_artifact(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_a_weight_index_stays_inside_its_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(InputError, match="allowed are files of its own folder"):
        WeightReader(tmp_path)


def run_folder(tmp_path: Path, text: str) -> str:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "eval.yaml").write_text(text)
    return str(tmp_path / "run")


OWN = "qvlm_lightning.data.ChatData"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {class_path: hostile.Evil}", "none of this package; if you trust it, give it"),
        (
            f"data: {{class_path: {OWN}, init_args: {{x: {{class_path: os.system}}}}}}",
            "none of this",
        ),
        (
            f"data: {{class_path: {OWN}, init_args: {{evaluation: {{path: a/b}}}}}}",
            "not on this machine",
        ),
        (f"data: {{class_path: {OWN}, init_args: {{y: [{{allow_outside: true}}]}}}}", "outside"),
        ("data: !!python/object/apply:os.system [touch hostile]", "no configuration"),
        ("a: &a [1, 2]\nb: &b [*a, *a]\ndata: *b", "no configuration"),
        ("[" * 5000, "no configuration"),
        ("data: 3", "no configuration"),
        ("x: " + "y" * 300_000, "bytes"),
    ],
)
def test_a_run_folder_runs_nothing(tmp_path, monkeypatch, text, words):
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    samples, notes = open_questions_of_runs([run_folder(tmp_path, text)])
    assert samples == {}
    assert words in notes[0]
    assert not (tmp_path / "was here").exists()


def test_data_of_this_package_is_opened(tmp_path):
    line = {"id": "q1", "question": "Why?", "answer": "So."}
    (tmp_path / "test.jsonl").write_text(json.dumps(line))
    source = f"evaluation: {{path: {tmp_path / 'test.jsonl'}}}"
    family = "family: {class_path: qvlm_lightning.models.tiny_family.Tiny}"  # as eval.py writes it
    text = f"data: {{class_path: {OWN}, init_args: {{name: mine, {family}, {source}}}}}"
    samples, notes = open_questions_of_runs([run_folder(tmp_path, text)])
    assert notes == []
    assert samples["mine"]["q1"].question == "Why?"


@pytest.mark.parametrize("pattern", ["(.*a){20}b", "^(([a-z.])+.)+[A-Z]([a-z])+$"])
def test_a_pattern_of_an_artifact_is_bounded(folder, pattern):
    manifest = json.loads((folder / "quantization.json").read_text())
    rewrite(folder / "quantization.json", scheme=manifest["scheme"] | {"ignore": [pattern]})
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"takes too long|matches no Linear"):
        load_artifact(folder)
    assert time.perf_counter() - start < 2


def test_a_chat_template_without_end_is_refused(folder):
    loops = "".join(f"{{% for {x} in range(99999) %}}" for x in "abc")
    (folder / "chat_template.jinja").write_text(loops + "x" + "{% endfor %}" * 3)
    start = time.perf_counter()
    with pytest.raises(InputError, match="it takes more than 2 seconds"):
        load_artifact(folder)
    assert time.perf_counter() - start < 6
