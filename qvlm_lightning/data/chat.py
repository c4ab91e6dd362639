"""Your own chats or questions, with or without answers."""

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.image import LazyImage, inside
from qvlm_lightning.data.messages import read_exchange
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.data.source import ALLOW, Rows, Source
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.models.family import VLMFamily

_HINT = "a file of JSON lines"


class ChatData(VQADataModule):
    """Your own data (docs/your_own_data.md): JSON lines beside images, or rows as on the hub.

    Calibration samples need no answers; without any, visual-encoder optimisation has no L_reg.

    Args:
        family: whose processor makes the batches.
        calibration: where calibration samples lie, drawn by the seed; the split is ``train`` by
            default. Not needed to evaluate.
        evaluation: where the evaluated questions lie; the split is ``test`` by default. Not needed
            to calibrate.
        image_folder: what names of image files are relative to; by default the folder that the
            JSON file is in.
        name: name of the data in results.
        max_turns: exchanges of a dialogue that calibration sees, the first ones; evaluation asks
            the first question only.
        evaluation_count: questions that are evaluated, the first ones; None for all there are.
        sizes: the other arguments of :class:`VQADataModule`.
    """

    answers_needed = False

    def __init__(
        self,
        family: VLMFamily,
        calibration: Source | None = None,
        evaluation: Source | None = None,
        image_folder: str | None = None,
        name: str = "chat",
        max_turns: int = 1,
        evaluation_count: int | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__(family, evaluation_count=evaluation_count, **sizes)
        self.calibration_source = calibration
        self.evaluation_source = evaluation
        self.image_folder = image_folder
        if max_turns < 1:
            raise InputError(f"max_turns is {max_turns}; allowed are integers of at least 1")
        self.max_turns = max_turns
        self._benchmark = name
        self._files: dict[Path, LazyImage] = {}

    @property
    def benchmark(self) -> str:
        """Name of the data in results."""
        return self._benchmark

    def setup(self, stage: str) -> None:
        """Check everything before work starts; a set to evaluate is only checked if there is one.

        Raises:
            InputError: see :meth:`VQADataModule.setup`.
        """
        if stage == "fit" and self.evaluation_source is None:
            _ = self.calibration
        else:
            super().setup(stage)

    def calibration_samples(self) -> list[Sample]:
        """Draw the calibration samples.

        Raises:
            InputError: there are none, or they cannot be read.
        """
        source = self.calibration_source
        samples = self._samples(source, "calibration", "train", self.max_turns)
        order = random.Random(self.seed).sample(range(len(samples)), len(samples))
        return [samples[place] for place in order[: self.calibration_pairs]]

    def evaluation_samples(self) -> list[Sample]:
        """Read the questions.

        Raises:
            InputError: there are none, or they cannot be read.
        """
        return self._samples(self.evaluation_source, "evaluation", "test")

    def blind_samples(self) -> list[Sample]:
        """Return all samples of the calibration source that have an answer."""
        source = self.calibration_source
        known = [] if source is None else self._samples(source, "calibration", "train")
        return [sample for sample in known if sample.answer]

    def _samples(
        self, source: Source | None, what: str, split: str, max_turns: int = 1
    ) -> list[Sample]:
        if source is None:
            raise InputError(f"there is no {what} set; give data.{what}.path, {_HINT}")
        anywhere = source.allow_outside
        return [self._sample(*found, max_turns, anywhere) for found in _rows(source, split)]

    def _sample(
        self,
        row: Mapping[str, Any],
        where: str,
        name: str,
        folder: Path,
        max_turns: int,
        anywhere: bool,
    ) -> Sample:
        found = read_exchange(row, where, max_turns)
        image = found.image
        if isinstance(image, str):
            root = Path(self.image_folder or folder).expanduser()
            path = root / image if anywhere else inside(root, image, where, ALLOW)
            image = self._files.setdefault(path, LazyImage.of(path))
        return Sample(
            id=str(row["id"]) if row.get("id") is not None else name,
            image=image,
            question=found.question,
            choices=found.choices,
            answer=found.answer,
            family="" if row.get("family") is None else str(row["family"]),
            further=found.further,
        )


def _rows(source: Source, split: str) -> Iterator[tuple[Mapping[str, Any], str, str, Path]]:
    """Yield rows with their place for messages, an id, and the folder that images lie in."""
    path = source.here
    if path is not None and path.is_file() and source.is_release:
        for number, row in json_rows(path):
            unit = "entry" if path.suffix == ".json" else "line"
            place = f"{unit} {number} of {str(path)!r}"
            if not isinstance(row, dict):
                raise InputError(f"{place} is a {type(row).__name__}; needed is a JSON object")
            yield row, place, f"{path.name}:{number}", path.parent
        return
    if path is not None and source.is_release:
        raise InputError(f"{source.path!r} holds no parquet files; give {_HINT}, or such a folder")
    chosen = Source(**(vars(source) | {"split": source.split or split}))
    for number, row in enumerate(Rows(chosen, _HINT)):
        yield row, f"row {number} of {chosen}", f"{chosen.split}:{number}", path or Path()


def json_rows(path: Path) -> Iterable[tuple[int, Any]]:
    """Read JSON lines, or one list; by hand, so that a fault has a line number."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix == ".json":
                content = parse_json(file.read())
                if not isinstance(content, list):
                    raise InputError(
                        f"{str(path)!r} holds a {type(content).__name__}; needed is a list, or "
                        "JSON lines in a file that ends in .jsonl"
                    )
                yield from enumerate(content, 1)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parsed(line, f"line {number} of {str(path)!r}")
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not JSON ({error})") from error


def _parsed(line: str, where: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error})") from error
