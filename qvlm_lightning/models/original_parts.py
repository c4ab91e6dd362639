"""Vision tower, tokenizer and processor of an original checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import InputError, first_line, parse_json
from qvlm_lightning.models.original_layout import Layout, Settings

# Sizes of the towers that the authors refer to by name (openai/CLIP).
_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_KNOWN: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": _LARGE | {"image_size": 224},
    "openai/clip-vit-large-patch14-336": _LARGE | {"image_size": 336},
}


@dataclass(frozen=True)
class VisionTower:
    """The tower a checkpoint refers to.

    Attributes:
        reference: how the checkpoint calls it.
        config: its configuration.
        folder: where it is, if it is anywhere.
        strategy: ``default`` leaves the class token out, ``full`` keeps it.
        padded: whether images are padded to squares.
    """

    reference: str
    config: Any
    folder: Path | None
    strategy: str
    padded: bool

    @property
    def tokens(self) -> int:
        """Number of image tokens."""
        patches = (self.config.image_size // self.config.patch_size) ** 2
        return int(patches + (self.strategy == "full"))


def vision_tower_of(
    settings: Settings, layout: Layout, source: Path, given: Path | None
) -> VisionTower:
    """Return the tower of a checkpoint.

    Args:
        settings: the checkpoint's ``config.json``.
        layout: names the setting that refers to the tower.
        source: the checkpoint; a relative reference is looked for there too.
        given: folder of the tower.

    Raises:
        InputError: the tower is no CLIP tower, or its sizes are nowhere to be found.
    """
    reference = settings.get(layout.tower_key)
    if not isinstance(reference, str):
        raise InputError(
            f"config.json of {str(source)!r} has no {layout.tower_key}: it is no vision-language "
            "checkpoint"
        )
    places = [given] if given is not None else [Path(reference), source / reference]
    folder = next((p for p in places if p is not None and (p / "config.json").is_file()), None)
    if given is not None and folder is None:
        raise InputError(f"vision tower {str(given)!r} has no config.json; give a CLIP folder")
    feature = settings.get("mm_vision_select_feature") or "patch"
    if feature not in ("patch", "cls_patch"):
        raise InputError(
            f"mm_vision_select_feature {feature!r} is not known; allowed: 'patch', 'cls_patch'"
        )
    return VisionTower(
        reference,
        _tower_config(reference, folder),
        folder,
        "full" if feature == "cls_patch" else "default",
        settings.get("image_aspect_ratio") == "pad",
    )


def _tower_config(reference: str, folder: Path | None) -> Any:
    from transformers import CLIPVisionConfig

    if folder is not None:
        found = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        if found.get("model_type") not in ("clip", "clip_vision_model"):
            raise InputError(
                f"vision tower {str(folder)!r} is a {found.get('model_type')!r} model; allowed: "
                "'clip', 'clip_vision_model'"
            )
        return CLIPVisionConfig.from_pretrained(folder)
    if reference not in _KNOWN:
        raise InputError(
            f"the checkpoint refers to the vision tower {reference!r}, which is not here; give its "
            "folder with --vision-tower"
        )
    return CLIPVisionConfig(**_KNOWN[reference])


@contextmanager
def without_warnings() -> Iterator[None]:
    """Within the block transformers reports errors only."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder.

    Raises:
        InputError: there is none that works here.
    """
    from transformers import AutoTokenizer

    try:
        with without_warnings():  # it does not know the kind of model beside it
            return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InputError(
            f"no usable tokenizer in {str(folder)!r} ({first_line(error)}); give a folder with a "
            "tokenizer.json with --tokenizer, or install sentencepiece to read tokenizer.model"
        ) from error


def image_token_of(tokenizer: Any) -> tuple[str, bool]:
    """Return the word that stands for an image, and whether it had to be added.

    Checkpoints up to LLaVA-1.3 have their own word; later ones mark an image outside the
    vocabulary.
    """
    known = tokenizer.get_vocab()
    for word in ("<im_patch>", "<image>"):
        if word in known:
            return word, False
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return "<image>", True


def make_processor(
    settings: Settings, layout: Layout, tower: VisionTower, tokenizer: Any, image_token: str
) -> Any:
    """Return the processor: the tower's images, the tokenizer, the authors' conversation."""
    from transformers import LlavaProcessor

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    wrapped = bool(settings.get("mm_use_im_start_end"))
    return LlavaProcessor(
        image_processor=_image_processor(tower),
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=tower.strategy,
        num_additional_image_tokens=1,  # CLIP's class token
        image_token=image_token,
        chat_template=chat_template(layout, image_token, wrapped),
    )


def _image_processor(tower: VisionTower) -> Any:
    from transformers import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    kind: Any = LlavaImageProcessorPil if tower.padded else CLIPImageProcessorPil
    side = tower.config.image_size
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
    }
    return kind(**sizes, do_pad=True) if tower.padded else kind(**sizes)


def chat_template(layout: Layout, image_token: str, wrapped: bool) -> str:
    """Return the authors' conversation as a template: ``system USER: question ASSISTANT: answer``,
    then the end of the answer and, without a space, the next question.

    Args:
        layout: first words and end of an answer.
        image_token: stands for the image, in front of the question.
        wrapped: whether ``<im_start>`` and ``<im_end>`` stand around it.

    Example:
        >>> from qvlm_lightning.models.original_layout import LAYOUTS
        >>> "ASSISTANT:" in chat_template(LAYOUTS["llava"], "<image>", False)
        True
    """
    image = f"<im_start>{image_token}<im_end>" if wrapped else image_token
    return (
        f"{layout.system}"
        "{% for m in messages %}"
        "{% if loop.first or m['role'] != 'user' %} {% endif %}"
        "{% if m['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        f"{image}\n"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
        f"{{% if m['role'] == 'assistant' %}}{layout.end}{{% endif %}}"
        "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
