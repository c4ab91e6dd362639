"""The LightningModule that answers the evaluation questions."""

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.collate import Batch
from qvlm_lightning.data.sample import Sample, check_disjoint_ids
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.evaluation.generate import (
    cut_at_stop,
    end_tokens_of,
    generate,
    image_token_of,
)
from qvlm_lightning.evaluation.journal import EvaluationKey, Record
from qvlm_lightning.evaluation.precision import cast, check_precision, precision_of
from qvlm_lightning.evaluation.questions import SharedQuestions, digest_questions
from qvlm_lightning.kernels import PackedModel
from qvlm_lightning.metrics.grouped import OVERALL, GroupedScore
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.results.predictions import search_facts
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.results.variant import Control, Variant, check_label
from qvlm_lightning.weights.exported import COMPRESSED, MANIFEST, located


class VQAEvaluation(LightningModule):
    """Answers questions greedily, in full precision or with an artifact's quantizers on.

    Args:
        family: the full-precision model.
        artifact: folder that a calibration of this model exported; none evaluates full precision.
        max_new_tokens: longest answer in tokens, the end of sequence included; by default what the
            data's benchmark says.
        stop: strings that end an answer and are not part of it; by default the benchmark's.
        precision: ``fp32``, ``bf16`` or ``fp16``: the type the full-precision model answers in; by
            default the one it was loaded in. An artifact answers in the type it was exported in.
        keep_log_probs: whether the first token's log-probabilities are stored, 4 bytes per question
            and word of the vocabulary; divergences are computed from them.
        name: name of the artifact's row in results, where several rows have one method; by default
            the method.

    Attributes:
        packed: whether an artifact computes with packed weights, as it is served, or is
            fake-quantized, as calibration measures; set it before the first use.
    """

    packed = False

    def __init__(
        self,
        family: VLMFamily,
        artifact: str | None = None,
        max_new_tokens: int | None = None,
        stop: list[str] | None = None,
        precision: str | None = None,
        keep_log_probs: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; allowed are 1 and more")
        if stop is not None and "" in stop:
            raise InputError("stop has an empty string; allowed are strings that can be found")
        check_precision(precision)
        if name is not None:
            check_label(name)
        self.family = family
        self.artifact = artifact
        self.max_new_tokens = max_new_tokens
        self.stop = stop
        self.precision = precision
        self.keep_log_probs = keep_log_probs
        self.row_name = name
        self.search: dict[str, Any] = {}
        self.model: nn.Module | None = None
        self.kernels: PackedModel | None = None
        self.questions: SharedQuestions | None = None
        self._images: dict[int, str] = {}

    def build(self, data: VQADataModule) -> None:
        """Load the model and check that it may answer these questions; idempotent.

        Raises:
            InputError: the artifact is missing, broken, of another model or type, or was calibrated
                on questions that are evaluated.
        """
        if self.model is not None:
            return
        self.model = self._full_precision() if self.artifact is None else self._quantized(data)
        self.model.eval()
        self._data = data
        self._longest = self.max_new_tokens or data.max_new_tokens
        self._stop = list(data.stop if self.stop is None else self.stop)
        self._ends = end_tokens_of(self.model, data.processor, self._stop)
        self._image = image_token_of(data.processor)

    def _quantized(self, data: VQADataModule) -> nn.Module:
        """Return the model of the artifact, and take its processor."""
        assert self.artifact is not None
        loaded = load_artifact(self.artifact, self.family.of_artifact(), packed=self.packed)
        manifest = loaded.manifest
        self._check_model(manifest)
        check_disjoint_ids(manifest["calibration_ids"], data.evaluation_ids)
        self._check_precision(loaded.model)
        loaded.structure.keep_only_quantized()
        self.kernels = loaded.packed
        data.processor = loaded.processor
        self.base = manifest["model"]
        self.source = _digest(located(self.artifact))
        self.variant = Variant(
            model=model_name(self.family),
            method=manifest["method"],
            scheme=manifest["scheme_name"],
            activation_mode=manifest["activation_mode"],
            seed=manifest["seed"],
            label="" if self.row_name == manifest["method"] else self.row_name or "",
            **Stress.of(self.family.describe())._asdict(),
        )
        self.search = search_facts(manifest, Path(self.artifact).resolve().parent)
        return loaded.model

    def _full_precision(self) -> nn.Module:
        model = self.family.load_model()
        self.source = self.base = self.family.fingerprint(model)
        scheme = "fp"
        if self.precision is not None and self.precision != precision_of(model):
            cast(model, self.precision)
            scheme = self.precision
            self.source += f"-{scheme}"
        stress = Stress.of(self.family.describe())
        self.variant = Variant(model_name(self.family), scheme=scheme, **stress._asdict())
        return model

    def _check_precision(self, model: nn.Module) -> None:
        if self.precision is not None and self.precision != (exported := precision_of(model)):
            raise InputError(
                f"precision is {self.precision!r}, but artifact {self.artifact!r} was exported in "
                f"{exported} and answers in it; leave precision out, or calibrate in that type"
            )

    def _check_model(self, manifest: dict[str, Any]) -> None:
        # artifacts of models without such a scale, or of earlier versions, do not name it
        scales = Stress()._asdict()
        for key, value in (scales | self.family.describe()).items():
            found = manifest.get(key, scales.get(key))
            if found != value:
                raise InputError(
                    f"artifact {self.artifact!r} was made with {key} {found!r}, the "
                    f"configured model has {value!r}; give the model it was made from"
                )

    def key(self, samples: Sequence[Sample], control: Control = "") -> EvaluationKey:
        """Return what the answers depend on, in plain values.

        Args:
            samples: the questions.
            control: which control they are asked for.
        """
        packed = {"packed": True} if self.kernels is not None else {}
        return packed | {
            "source": self.source,
            "benchmark": self._data.benchmark,
            "mode": self._data.mode,
            "split": self._data.split,
            "control": control,
            "questions": digest_questions(samples, self._data.processor, self._images),
            "max_new_tokens": self._longest,
            "stop": self._stop,
            "log_probs": self.keep_log_probs and not control,
        }

    def setup(self, stage: str) -> None:
        """Agree with the other processes on who answers what."""
        assert self.questions is not None, "evaluate() says what is asked"
        note = self.questions.open(self.trainer.strategy)
        if note and self.trainer.is_global_zero:
            print(note, file=sys.stderr)

    def on_test_start(self) -> None:
        """Open this process's record, count what is already answered and start the clock."""
        questions = self.questions
        assert questions is not None
        self._score = GroupedScore().to(self.device)
        if self.trainer.is_global_zero:
            self._count(list(questions.done), list(questions.done.values()))
        keep = bool(questions.key["log_probs"])
        rank = self.trainer.global_rank
        self._record = Record(questions.journal, questions.session, rank, keep)
        self._began = time.monotonic()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Answer a batch and write the answers down."""
        if not batch:
            return
        assert self.model is not None
        assert self.questions is not None
        stopped = self._stopped if self._stop else None
        answers = generate(self.model, batch, self._ends, self._longest, self._image, stopped)
        places = batch["sample_index"].tolist()
        answers.check([self.questions.samples[place].id for place in places])
        texts = [cut_at_stop(self._decode(row), self._stop).strip() for row in answers.rows()]
        # a killed process may have left part of a batch; it is answered whole, written once
        new = [row for row, place in enumerate(places) if place not in self.questions.done]
        new_places, new_texts = [places[row] for row in new], [texts[row] for row in new]
        ids = [self.questions.samples[place].id for place in new_places]
        self._record.add(ids, new_texts, answers.log_probs[new], time.monotonic() - self._began)
        self._count(new_places, new_texts)

    def _decode(self, tokens: list[int]) -> str:
        return self._data.processor.tokenizer.decode(tokens, skip_special_tokens=True)

    def _stopped(self, tokens: list[int]) -> bool:
        text = self._decode(tokens)
        return any(stop in text for stop in self._stop)

    def _count(self, places: list[int], texts: list[str]) -> None:
        assert self.questions is not None
        samples = [self.questions.samples[place] for place in places]
        judged = [self._data.judge(s, text) for s, text in zip(samples, texts, strict=True)]
        self._score.update(judged, [()] * len(judged))

    def on_test_epoch_end(self) -> None:
        """Log the points of all processes, percent; reports are made from the stored answers."""
        self._record.close()
        self.log("eval/accuracy", self._score.compute()[OVERALL].float())


def model_name(family: VLMFamily) -> str:
    """Name a family's model in results: the folder's name, or that of the embedded model.

    Args:
        family: the model.
    """
    described = family.describe()
    path = described.get("path")
    return Path(path).name if path else str(described["family"]).lower()


def _digest(artifact: Path) -> str:
    """Hash an artifact's files, so that answers of an older one are not taken for its own."""
    digest = hashlib.sha256()
    manifest = parse_json((artifact / MANIFEST).read_bytes())
    # the manifest has hashes of the files of weights, compared when they are loaded
    known = manifest.get("files", {}) if manifest.get("format") == COMPRESSED else {}
    for path in sorted(artifact.glob("*.json")) + sorted(artifact.glob("*.safetensors")):
        if path.name not in known:
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
