"""Whether a model may draft for another: what their tokens are, and how far it knows positions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from sapwood.arch.families import FAMILIES, declare
from sapwood.arch.parts import Decoder
from sapwood.arch.positions import Positions
from sapwood.base.errors import ConfigError
from sapwood.hub import draft
from sapwood.hub.draft import find_draft, tokens_of
from sapwood.hub.files import ModelFiles, open_files
from tests import tiny


def files(path: Path, tokenizer: dict[str, Any] | None = None) -> ModelFiles:
    """A model's directory without weights."""
    path.mkdir()
    tiny.write_bytes_model(path)
    if tokenizer is not None:
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return open_files(path, name=path.name, weights=False)


def found(small: ModelFiles, large: ModelFiles, target: Decoder) -> Decoder:
    made = find_draft(str(small.path), target, large, families=FAMILIES, methods=(), weights=False)
    assert isinstance(made.decoder, Decoder)
    return made.decoder


def test_tokens_of_every_kind_of_tokenizer(tmp_path: Path) -> None:
    added = [{"id": 2, "content": "<end>"}]
    as_map = files(tmp_path / "map", {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": added})
    as_list = files(tmp_path / "list", {"model": {"vocab": [["a", 0.0], ["b", -1.0]]}, "added_tokens": added})
    assert tokens_of(as_map) == tokens_of(as_list) == {0: "a", 1: "b", 2: "<end>"}
    (as_map.path / "tokenizer.json").unlink()
    assert tokens_of(as_map) == {}
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(["a", "b", "<end>"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    in_file = ModelFiles("model", tmp_path / "model.gguf", "gguf", {}, {})
    assert tokens_of(in_file) == {0: "a", 1: "b", 2: "<end>"}


def test_positions_go_as_far_as_the_other_models(tmp_path: Path) -> None:
    small, large = files(tmp_path / "small"), files(tmp_path / "large")
    target = replace(declare(large.config), max_positions=9000)
    assert found(small, large, target).max_positions == 9000


def test_learned_positions_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = files(tmp_path / "small"), files(tmp_path / "large")
    target = declare(large.config)
    learned = replace(target, positions=Positions("wpe", 4096, 64))
    monkeypatch.setattr(draft, "declare", lambda *args, **options: learned)
    assert found(small, large, target) == learned
    with pytest.raises(ConfigError, match=r"it has learned 4096 positions and no more, and that has 9000"):
        found(small, large, replace(target, max_positions=9000))


def test_tokens_that_only_one_of_them_knows_are_no_difference(tmp_path: Path) -> None:
    vocab = {"a": 0, "b": 1}
    small = files(tmp_path / "small", {"model": {"vocab": vocab}})
    large = files(tmp_path / "large", {"model": {"vocab": vocab | {"c": 2}}})
    target = declare(large.config)
    assert found(small, large, target).vocab_size == 258
    other = files(tmp_path / "other", {"model": {"vocab": {"b": 0, "a": 1}}})
    with pytest.raises(ConfigError, match=r"token 0 is 'b' in the one and 'a' in the other"):
        found(other, large, target)
