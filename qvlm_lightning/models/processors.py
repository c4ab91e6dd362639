"""Processors of images and text alone, for families whose own also wants a video processor.

Video processors need torchvision, which this project keeps out (CONTRIBUTING.md); nothing here sees
a video. A folder saved with such a processor loads into transformers' own class where torchvision
is installed.
"""

import inspect
import re
from functools import cache
from typing import Any

_VISUAL = re.compile("image|img|video|vision|audio|boi|eoi", re.IGNORECASE)


def image_words(processor: Any) -> frozenset[str]:
    """Return the words of a text that a processor takes for an image, or for its border.

    Args:
        processor: a Hugging Face processor of images and text.
    """
    words: set[str] = set()
    for owner in (processor, processor.tokenizer):
        held = getattr(owner, "__dict__", {}) | getattr(owner, "special_tokens_map", {})
        named = {
            str(value)
            for name, value in held.items()
            if _VISUAL.search(name) and name.endswith(("_token", "_tag")) and value is not None
        }
        words |= named
    special = getattr(processor.tokenizer, "added_tokens_decoder", {}).values()
    words |= {token.content for token in special if token.special and _VISUAL.search(token.content)}
    return frozenset(words - {""})


def load_image_processor_only(path: str) -> Any:
    """Load the processor of a folder without its video processor.

    Args:
        path: folder in the Hugging Face layout, or a repository id on the hub.

    Raises:
        OSError, ValueError, ImportError: it has no processor, or one that cannot be made.
    """
    import transformers

    name = processor_name(path)
    if name is None:
        raise ValueError("neither processor_config.json nor preprocessor_config.json names a class")
    return image_only(getattr(transformers, name)).from_pretrained(path)


def processor_name(path: str) -> str | None:
    """Return the ``processor_class`` that a folder's files name; ``None`` if none does."""
    import json

    from transformers.utils import cached_file

    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        found = cached_file(path, file, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            with open(found, encoding="utf-8") as text:
                name = json.load(text).get("processor_class")
            if name is not None:
                return str(name)
    return None


@cache
def image_only(cls: Any) -> Any:
    """Return ``cls``, a transformers processor class, without its video processor.

    Its instances take images and text as before; they are saved under the name of ``cls``.
    """
    signature = inspect.signature(cls.__init__)
    if "video_processor" not in signature.parameters:
        return cls
    kept = [p for name, p in signature.parameters.items() if name != "video_processor"]
    takes_default = signature.parameters["video_processor"].default is None

    def start(self: Any, *args: Any, **options: Any) -> None:
        check = type(self).check_argument_for_proper_class
        # the base class asks of every part whether it is of its class: None is no video processor
        self.check_argument_for_proper_class = lambda name, part: (
            type(part) if name == "video_processor" else check(self, name, part)
        )
        given = dict(zip([p.name for p in kept[1:]], args, strict=False)) | options
        try:
            cls.__init__(self, **given, **({} if takes_default else {"video_processor": None}))
        finally:
            del self.__dict__["check_argument_for_proper_class"]

    start.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    # what a folder may set is read off the code of __init__, which here takes anything
    settings = [p.name for p in kept[1:] if p.name not in ("image_processor", "tokenizer")]

    def validate(processor_config: Any, valid_kwargs: Any) -> Any:
        return cls.validate_init_kwargs(processor_config, settings)

    own = {"__init__": start, "validate_init_kwargs": staticmethod(validate)}
    made = type(cls.__name__, (cls,), own | {"__module__": cls.__module__})
    made.__qualname__ = cls.__qualname__
    return made


@cache
def nesting(cls: Any) -> Any:
    """Return ``cls``, a transformers processor class that wants a list of images per text, so that
    it also takes one list: images go to the texts whose placeholders they fill.
    """

    def call(self: Any, images: Any = None, text: Any = None, **options: Any) -> Any:
        if isinstance(images, list) and isinstance(text, list):
            rest = iter(images)
            images = [[next(rest) for _ in range(t.count(self.image_token))] for t in text]
        return cls.__call__(self, images=images, text=text, **options)

    made = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
    made.__qualname__ = cls.__qualname__
    return made


PREFIX_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{{ eos_token }}"
    "{% elif m['content'] is string %}{{ bos_token }}{{ m['content'] }}{{ '\\n' }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{{ bos_token }}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""PaliGemma's prompt, which its processor otherwise writes by itself: image, start, question."""


@cache
def prefixing(cls: Any) -> Any:
    """Return ``cls``, PaliGemma's processor class, so that the chat template alone says what a
    prompt is; prompts without an image and of different lengths are allowed.

    Its ``answer_type`` is the token type of an answer: the prefix, type 0, sees itself as a whole.
    """
    from transformers import ProcessorMixin

    def call(self: Any, images: Any = None, text: Any = None, **options: Any) -> Any:
        made = ProcessorMixin.__call__(self, images=images, text=text, **options)
        made["token_type_ids"] = [[0] * len(row) for row in made["input_ids"]]
        return made

    own = {
        "__call__": call,
        "__module__": cls.__module__,
        "answer_type": 1,
        "prepare_inputs_layout": ProcessorMixin.prepare_inputs_layout,
        "validate_inputs": ProcessorMixin.validate_inputs,
    }
    made = type(cls.__name__, (cls,), own)
    made.__qualname__ = cls.__qualname__
    return made


class ImageProcessorOnly:
    """For families whose processor is loaded without its video processor."""

    path: str

    def read_processor(self) -> Any:
        """Read the processor from the folder, images and text alone."""
        return load_image_processor_only(self.path)
