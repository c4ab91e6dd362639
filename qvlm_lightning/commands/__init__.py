"""One file per verb of ``qvlm``, with ``main(argv) -> exit code``; docstring line 1 is its help."""

import ast
from pathlib import Path


def verbs() -> dict[str, str]:
    """Verb -> one-line description, read from the files without importing them.

    Example:
        >>> "table" in verbs()
        True
    """
    files = sorted(p for p in Path(__file__).parent.glob("*.py") if not p.name.startswith("_"))
    return {file.stem.replace("_", "-"): _summary(file) for file in files}


def _summary(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
