"""GGUF files in other types, and what cannot be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.base.errors import UserError
from sapwood.cli import main
from sapwood.hub.gguf import open_gguf
from sapwood.quant.making import ggufs
from sapwood.quant.making.schemes import group_of
from tests.nn import ggufs as written


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written.write("llama-tied", tmp_path_factory.mktemp("gguf") / "small.gguf")


def quantised(source: Path, output: Path, kind: str) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    ggufs.quantise(source, output, ggufs.type_of(kind), lambda done, total: told.append((done, total)))
    return told


def test_matrices_are_rounded_and_all_else_stays(small_gguf: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    told = quantised(small_gguf, made, "Q8_0")
    before, after = open_gguf(small_gguf), open_gguf(made)
    assert [done for done, _ in told] == [i + 1 for i in range(len(before.tensors))]
    changed = {"general.file_type", "general.quantization_version"}
    assert {k: v for k, v in before.metadata.items() if k not in changed} == {
        k: v for k, v in after.metadata.items() if k not in changed
    }
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in after.tensors.items():
        whole = before.tensors[name].dequantize()
        matrix = len(tensor.shape) > 1
        assert tensor.type.name == ("Q8_0" if matrix else "F32")
        assert np.abs(tensor.dequantize() - whole).max() <= (np.abs(whole).max() / 127 if matrix else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "int3"], "there is none such; take one of fp8"),
        (["--scheme", "gguf:Q4_K_M"], "llama-quantize"),
        (["--scheme", "fp8", "--samples", "0"], "at least 1"),
        (["--scheme", "fp8", "--calibration", "nowhere.txt"], "cannot be read as text"),
    ],
)
def test_what_cannot_be_made_says_why(
    arguments: list[str], message: str, small_gguf: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["quantize", str(small_gguf), "--output", str(tmp_path / "new"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_directory_that_is_not_empty_is_left_alone(small_gguf: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine").touch()
    assert main(["quantize", str(small_gguf), "--scheme", "fp8", "--output", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_groups_are_the_largest_that_all_rows_are_full_of() -> None:
    assert group_of({"a": 4096, "b": 14336}) == 128
    assert group_of({"a": 576, "b": 1536}) == 64
    with pytest.raises(UserError, match="b has 100 inputs"):
        group_of({"a": 128, "b": 100})
