"""The verbs, and how the programs end."""

import errno
import re
import subprocess
import sys
import threading

import pytest

import qvlm_lightning.commands
from qvlm_lightning.__main__ import main
from qvlm_lightning.errors import InputError
from qvlm_lightning.exits import user_faults


@pytest.fixture
def greet(tmp_path, monkeypatch) -> None:
    """A verb ``say-hello`` in a folder of its own."""
    (tmp_path / "say_hello.py").write_text(
        '"""Greets whoever is named.\n\nMore words."""\nimport json\n\n\n'
        "def main(argv):\n    print('hello', *argv)\n    return 3\n"
    )
    (tmp_path / "_private.py").write_text("raise AssertionError")
    monkeypatch.setattr(qvlm_lightning.commands, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(qvlm_lightning.commands, "__path__", [str(tmp_path)])


@pytest.mark.usefixtures("greet")
def test_a_verb_gets_its_arguments_and_gives_its_code(capsys) -> None:
    assert main(["say-hello", "you", "--loud"]) == 3
    assert capsys.readouterr().out == "hello you --loud\n"


@pytest.mark.usefixtures("greet")
@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_the_verbs(capsys, argv: list[str]) -> None:
    assert main(argv) == 0
    assert "say-hello  Greets whoever is named.\n" in capsys.readouterr().out


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qvlm-lightning 0.")


@pytest.mark.usefixtures("greet")
def test_an_unknown_verb_is_a_user_fault(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["sing"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: unknown verb 'sing'; allowed are say-hello\n"


def test_every_verb_says_what_it_does() -> None:
    for verb, summary in qvlm_lightning.commands.verbs().items():
        assert 10 < len(summary) <= 100, verb


@pytest.mark.parametrize(
    ("fault", "code", "sentence"),
    [
        (InputError("depth is 0, allowed is 1 or more"), 2, "depth is 0, allowed is 1 or more"),
        (OSError(errno.ENOSPC, "No space", "runs/a"), 2, "runs/a): the disk is full"),
        (OSError(errno.EDQUOT, "Quota"), 2, "the disk quota is used up"),
        (OSError(errno.EROFS, "Read-only", "runs"), 2, "the file system is read-only"),
        (PermissionError(errno.EACCES, "Denied", "runs"), 2, "permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(capsys, fault, code: int, sentence: str) -> None:
    with pytest.raises(SystemExit) as end, user_faults():
        raise fault
    assert end.value.code == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_a_user_fault_is_found_behind_what_a_parser_made_of_it(capsys) -> None:
    wrapped = ValueError("Does not validate\nagainst any of")
    wrapped.__cause__ = InputError("weight_bits is 1")
    with pytest.raises(SystemExit) as end, user_faults():
        raise wrapped
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: weight_bits is 1\n"


@pytest.mark.parametrize("fault", [ValueError("ours"), FileNotFoundError(errno.ENOENT, "gone")])
def test_our_own_faults_keep_their_traceback(fault: Exception) -> None:
    with pytest.raises(type(fault)), user_faults():
        raise fault


def test_help_of_every_verb_is_quick_and_describes_every_option() -> None:
    """Within a CPU-second: no verb imports torch or Lightning for its help."""
    for verb in qvlm_lightning.commands.verbs():
        code = (
            "import sys; from qvlm_lightning.__main__ import main\n"
            f"try: main([{verb!r}, '--help'])\nexcept SystemExit as end: assert not end.code\n"
            "assert not {'torch', 'lightning', 'transformers'} & {*sys.modules}, 'heavy'"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, (verb, run.stderr)
        options = re.findall(r"^  (-.*)$", run.stdout, re.MULTILINE)
        assert options, verb
        bare = [o for o in options if not re.search(r"\S {2,}\S", o) and not follows(run.stdout, o)]
        assert not bare, (verb, bare)


def follows(text: str, option: str) -> bool:
    """Return whether an option's description stands on the next line."""
    after = text.partition(f"  {option}\n")[2].partition("\n")[0]
    return after.startswith("      ") and bool(after.strip())


@pytest.mark.parametrize(
    ("fault", "printed"), [(OSError(errno.ENOSPC, "No space", "events"), 0), (OSError("ours"), 1)]
)
def test_a_thread_that_cannot_write_prints_no_traceback(fault, printed, monkeypatch):
    """As TensorBoard's: what stopped it is raised again where the program goes on."""
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def write():
        raise fault

    with user_faults():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(seen) == printed
    assert threading.excepthook == seen.append
