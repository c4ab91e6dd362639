"""What a model folder, or a model in memory, must have before anything long starts."""

from collections.abc import Callable
from typing import Any

from qvlm_lightning.errors import Foreign, InputError
from qvlm_lightning.time_limit import at_most

SECONDS_OF_TEMPLATE = 2.0
"""For two questions; an ordinary template takes milliseconds."""
_CLASS_TOKENS = ("clip_vision_model", "dinov2")
"""Towers whose output begins with a token that is no patch."""


def check_full_precision(settings: dict[str, Any], where: str) -> None:
    """Refuse a model that another program has quantized.

    Args:
        settings: its configuration.
        where: its folder, for messages.

    Raises:
        InputError: the configuration, or one in it, says how it was quantized.
    """
    inner = [x for x in settings.values() if isinstance(x, dict)]
    for part in (settings, *inner):
        given = part.get("quantization_config") or part.get("compression_config")
        if given:
            how = given.get("quant_method") if isinstance(given, dict) else None
            method = f" ({how})" if isinstance(how, str) else ""
            raise InputError(
                f"{where} holds a model that is quantized already{method}; give the model in full "
                "precision that it was made from"
            )


def check_processor(processor: Any, where: str, config: Callable[[], Any]) -> None:
    """Check that a processor can make prompts, before anything long starts; a patch size that older
    versions of transformers did not store is taken from the model's configuration.

    Args:
        processor: of a model; changed in place.
        where: its folder, for messages.
        config: reads the model's configuration, if it is needed.

    Raises:
        InputError: it has no tokenizer, no chat template, one that leaves images out or takes
            seconds for one question, no token that ends an answer, or no patch size.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "apply_chat_template"):
        raise InputError(
            f"{where} has a {type(processor).__name__}, which does not take images and text; "
            "needed is a processor with a tokenizer and a chat template"
        )
    if not getattr(processor, "chat_template", None):
        raise InputError(
            f"the processor of {where} has no chat template; needed is a chat_template.jinja that "
            "writes the model's prompt"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {where} has no eos_token, which answers end with; name it in "
            "tokenizer_config.json"
        )
    # a class token that is not counted: stored between transformers 4.45 and 4.47
    uncounted = getattr(processor, "num_additional_image_tokens", None) == 0
    defaults = getattr(processor, "vision_feature_select_strategy", None) == "default"
    if getattr(processor, "patch_size", 0) is None or (uncounted and defaults):
        _take_patches(processor, where, config)
    whose = f"the chat template of {where} cannot write a question with an image"
    with Foreign(whose), at_most(SECONDS_OF_TEMPLATE):
        text = [{"type": "text", "text": "What?"}]
        asked = [
            processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            for content in (text, [{"type": "image"}, *text])
        ]
    if asked[0] == asked[1]:
        raise InputError(
            f"the chat template of {where} leaves images out; needed is one that writes a "
            "placeholder for a part of type image"
        )


def _take_patches(processor: Any, where: str, config: Callable[[], Any]) -> None:
    """Let LLaVA's processors of before transformers 4.47 count the tokens of an image."""
    found = config()
    vision: Any = getattr(found, "vision_config", None)
    if processor.patch_size is None:
        patch = getattr(vision, "patch_size", None)
        if not isinstance(patch, int):
            raise InputError(
                f"the processor of {where} has no patch_size, nor has config.json; add it to "
                "processor_config.json"
            )
        processor.patch_size = patch
        strategy = getattr(found, "vision_feature_select_strategy", None)
        processor.vision_feature_select_strategy = strategy or "default"
    kind = getattr(vision, "model_type", None)
    processor.num_additional_image_tokens = int(kind in _CLASS_TOKENS)
