"""A calibrated artifact as a model of lmms-eval (optional; docs/evaluation.md).

``python -m qvlm_lightning.evaluation.bridge`` is lmms-eval's own command line with one model more,
``qvlm``. lmms-eval pins old libraries and brings torchvision, so it runs as a process of an
environment of its own and is imported nowhere else.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import InputError
from qvlm_lightning.exits import user_faults

MODEL = "qvlm"
"""What ``--model`` calls it."""
_PLACEHOLDER = "<image>"
_LONGEST = 1024  # tokens, where a task does not say; lmms-eval's own default for LLaVA


def command(
    python: str, artifact: str, tasks: str, out: str, batch_size: int = 1, extra: Sequence[str] = ()
) -> list[str]:
    """Return the command that evaluates an artifact with lmms-eval.

    Args:
        python: interpreter of an environment that has lmms-eval and this project.
        artifact: folder that a calibration exported.
        tasks: names of lmms-eval's tasks, separated by commas.
        out: folder of lmms-eval's results.
        batch_size: questions at once.
        extra: further options of lmms-eval.

    Raises:
        InputError: a path that lmms-eval's option syntax cannot hold.

    Example:
        >>> command("python", "runs/demo/artifact", "pope", "out")[3:7]
        ['--model', 'qvlm', '--model_args', 'artifact=runs/demo/artifact']
    """
    if "," in artifact or "=" in artifact:
        raise InputError(f"artifact {artifact!r} has a comma or an equals sign; rename the folder")
    return [
        *(python, "-m", "qvlm_lightning.evaluation.bridge"),
        *("--model", MODEL, "--model_args", f"artifact={artifact}", "--tasks", tasks),
        *("--batch_size", str(batch_size), "--output_path", out, "--log_samples", *extra),
    ]


def main() -> None:
    """Run lmms-eval's command line on the process's own arguments, with our model registered.

    Raises:
        SystemExit: code 2 where lmms-eval is not installed.
    """
    with user_faults():
        register()
        from lmms_eval.__main__ import cli_evaluate

        cli_evaluate()


def register() -> None:
    """Make our model known to lmms-eval, whichever of its three kinds of register it has.

    Raises:
        InputError: lmms-eval is not installed here.
    """
    try:
        from lmms_eval import models
    except ModuleNotFoundError as error:
        if error.name != "lmms_eval":
            raise
        raise InputError(
            f"lmms-eval is not installed for {sys.executable!r}; give --python of an environment "
            "that has it (docs/evaluation.md)"
        ) from error
    path = f"{__spec__.name if __spec__ else __name__}.QuantizedModel"
    if hasattr(models, "MODEL_REGISTRY_V2"):  # since 0.6
        from lmms_eval.models.registry_v2 import ModelManifest

        models.MODEL_REGISTRY_V2.register_manifest(ModelManifest(MODEL, simple_class_path=path))
    elif hasattr(models, "AVAILABLE_SIMPLE_MODELS"):  # since 0.4
        models.AVAILABLE_SIMPLE_MODELS[MODEL] = path
    else:
        models.AVAILABLE_MODELS[MODEL] = path


def __getattr__(name: str) -> Any:
    """Give lmms-eval the class it asks for; it cannot exist before lmms-eval is imported."""
    if name == "QuantizedModel":
        return _model_class()
    raise AttributeError(name)


@functools.cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    class QuantizedModel(lmms):
        """An artifact that answers lmms-eval's requests greedily, as ``eval.py`` would.

        Args:
            artifact: folder that a calibration exported.
            batch_size: questions at once.
            device: where to compute.
            max_batch_size: not used.
        """

        is_simple = True

        def __init__(
            self,
            artifact: str,
            batch_size: int | str = 1,
            device: str | None = None,
            max_batch_size: int | None = None,
        ) -> None:
            from qvlm_lightning.artifact import load_artifact
            from qvlm_lightning.evaluation.answering import Answering

            self.pretrained = str(Path(artifact).resolve())  # names the model in caches
            super().__init__()
            loaded = load_artifact(artifact)
            model = loaded.model.to(device or "cpu")
            self.answering = Answering(model, loaded.processor, int(batch_size))

        def generate_until(self, requests: list[Any]) -> list[str]:
            """Answer requests, in their order."""
            prompts = [self._prompt(request) for request in requests]
            return self.answering(prompts)

        def _prompt(self, request: Any) -> Any:
            from qvlm_lightning.evaluation.answering import Prompt

            context, options, doc_to_visual, doc_id, task, split = request.args
            images = doc_to_visual(self.task_dict[task][split][doc_id])
            if len(images) > 1:
                raise InputError(f"{task} shows {len(images)} images at once; the bridge takes one")
            if options.get("do_sample") or options.get("temperature"):
                raise InputError(f"{task} samples its answers; the bridge answers greedily")
            until = options.get("until", [])
            return Prompt(
                question=context.replace(_PLACEHOLDER, "").strip(),
                image=images[0] if images else None,
                max_new_tokens=options.get("max_new_tokens", _LONGEST),
                stop=(until,) if isinstance(until, str) else tuple(until),
            )

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            """Refuse: only generated answers are supported."""
            raise InputError("the bridge generates answers; choose tasks of generate_until")

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            """Refuse: only single questions are supported."""
            raise InputError("the bridge answers one question at a time; choose other tasks")

    return QuantizedModel


if __name__ == "__main__":
    main()
