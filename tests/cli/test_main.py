"""The command line as a whole: fast help, one-line errors, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sapwood import __version__
from sapwood.base.errors import EngineDead, ModelError
from sapwood.cli import COMMANDS, main, pull


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sapwood.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'rich', 'starlette', 'huggingface_hub', 'tokenizers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {*COMMANDS} <= {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"sapwood {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "--max-model-length", "3"], "did you mean --max-model-len?"),
        (["server"], "invalid choice: 'server'"),
        ([], "COMMAND"),
        (["pull", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_misuse_is_one_line_and_code_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    err = capsys.readouterr().err
    assert err.startswith("sapwood: error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["explain", "--port", "http"], "--port takes a whole number"),
        (["serve", "--config", "/nowhere.toml"], "No such file"),
        (["run", "--resume", "x"], "--resume needs"),
        (["chat", "--url", "127.0.0.1:1"], "cannot be reached"),
    ],
)
def test_user_errors_are_one_line_and_code_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("sapwood: error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("error", "code"), [(ModelError("broken"), 2), (EngineDead("gone"), 1), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(args: object) -> int:
        raise error

    monkeypatch.setattr(pull, "run", fails)
    assert main(["pull"]) == code


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    ended = subprocess.run(
        f"{sys.executable} -m sapwood pull | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode in (0, 1) and not ended.stderr, "0 if all was written before it went"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SAPWOOD_DEBUG", "1")
    assert main(["explain", "--port", "http"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_pull_without_a_model_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull"]) == 0
    assert "smollm2-135m" in capsys.readouterr().out
