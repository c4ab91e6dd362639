"""The LightningModule that answers the evaluation questions."""

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.data.base import QuestionBatches, VQADataModule
from qvlm_lightning.data.collate import Batch
from qvlm_lightning.data.sample import Sample, check_disjoint_ids
from qvlm_lightning.errors import InputError
from qvlm_lightning.evaluation.generate import cut_at_end, end_tokens_of, generate
from qvlm_lightning.evaluation.predictions import Control, Predictions, Variant
from qvlm_lightning.metrics.counts import AnswerAccuracy
from qvlm_lightning.models.family import VLMFamily


class VQAEvaluation(LightningModule):
    """Answers questions greedily, in full precision or with an artifact's quantizers on.

    Args:
        family: the full-precision model.
        artifact: folder that a calibration of this model exported; none evaluates full precision.
        max_new_tokens: longest answer in tokens, the end of sequence included.
    """

    def __init__(
        self, family: VLMFamily, artifact: str | None = None, max_new_tokens: int = 4
    ) -> None:
        super().__init__()
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; allowed are 1 and more")
        self.family = family
        self.artifact = artifact
        self.max_new_tokens = max_new_tokens
        self.model: nn.Module | None = None
        self.predictions: Predictions | None = None

    def build(self, data: VQADataModule) -> None:
        """Load the model and check that it may answer these questions; idempotent.

        Raises:
            InputError: the artifact is missing, broken, of another model, or was calibrated on
                questions that are evaluated.
        """
        if self.model is not None:
            return
        if self.artifact is None:
            self.model = self.family.load_model()
            self.source = self.base = self.family.fingerprint(self.model)
            self.variant = Variant(model_name(self.family), outlier_scale=_scale(self.family))
        else:
            loaded = load_artifact(self.artifact)
            manifest = loaded.manifest
            self._check_model(manifest)
            check_disjoint_ids(manifest["calibration_ids"], data.evaluation_ids)
            self.model, data.processor = loaded.model, loaded.processor
            self.base = manifest["model"]
            self.source = _digest(Path(self.artifact))
            self.variant = Variant(
                model=model_name(self.family),
                method=manifest["method"],
                scheme=manifest["scheme_name"],
                activation_mode=manifest["activation_mode"],
                outlier_scale=_scale(self.family),
                seed=manifest["seed"],
            )
        self.model.eval()
        self._processor = data.processor
        self._ends = end_tokens_of(self.model, data.processor)
        image = getattr(data.processor, "image_token", None)
        tokenizer = data.processor.tokenizer
        self._image = None if image is None else int(tokenizer.convert_tokens_to_ids(image))

    def _check_model(self, manifest: dict[str, Any]) -> None:
        for key, value in self.family.describe().items():
            if manifest.get(key) != value:
                raise InputError(
                    f"artifact {self.artifact!r} was made with {key} {manifest.get(key)!r}, the "
                    f"configured model has {value!r}; give the model it was made from"
                )

    def setup(self, stage: str) -> None:
        """Build the model before the first batch."""
        if self.trainer.world_size > 1:
            raise InputError(
                f"evaluation was given {self.trainer.world_size} processes; allowed is 1"
            )
        if self.model is None:
            data = getattr(self.trainer, "datamodule", None)
            assert isinstance(data, VQADataModule), (
                "trainer.test(module, datamodule) or build first"
            )
            self.build(data)

    def on_test_start(self) -> None:
        """Start the clock."""
        self._texts: dict[int, str] = {}
        self._log_probs: dict[int, Tensor] = {}
        self._began = time.monotonic()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Answer a batch."""
        assert self.model is not None
        answers = generate(self.model, batch, self._ends, self.max_new_tokens, self._image)
        decode = self._processor.tokenizer.decode
        places = batch["sample_index"].tolist()
        tokens = answers.tokens.tolist()
        rows = zip(places, tokens, answers.log_probs.cpu(), strict=True)
        for place, row, log_probs in rows:
            text = decode(cut_at_end(row, self._ends), skip_special_tokens=True)
            self._texts[place] = text.strip()
            self._log_probs[place] = log_probs

    def answered(self, samples: list[Sample], control: Control = "") -> Predictions:
        """Return what was answered since the test began, in the order of the samples."""
        order = range(len(samples))
        return Predictions.of(
            samples,
            [self._texts[i] for i in order],
            variant=self.variant,
            source=self.source,
            base=self.base,
            seconds=round(time.monotonic() - self._began, 3),
            log_probs=None if control else torch.stack([self._log_probs[i] for i in order]),
            control=control,
        )

    def on_test_epoch_end(self) -> None:
        """Log the accuracy; the report is made from the stored answers."""
        batches = self.trainer.test_dataloaders
        assert isinstance(batches, QuestionBatches)
        samples = batches.samples
        metric = AnswerAccuracy(sorted({s.family for s in samples}))
        asked = [samples[i] for i in self._texts]
        metric.update(
            list(self._texts.values()),
            [s.answer for s in asked],
            [len(s.choices) for s in asked],
            [s.family for s in asked],
        )
        self.log("eval/accuracy", metric.compute()["overall"].float())


def model_name(family: VLMFamily) -> str:
    """Name a family's model in results: the folder's name, or that of the embedded model.

    Args:
        family: the model.
    """
    described = family.describe()
    path = described.get("path")
    return Path(path).name if path else str(described["family"]).lower()


def _scale(family: VLMFamily) -> float:
    return float(family.describe().get("outlier_scale", 1.0))


def _digest(artifact: Path) -> str:
    """Hash an artifact's files, so that answers of an older one are not taken for its own."""
    digest = hashlib.sha256()
    for path in sorted(artifact.glob("*.json")) + sorted(artifact.glob("*.safetensors")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
