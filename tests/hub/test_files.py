"""Model directories: what is found, and what is said about those that cannot be used."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from sapwood.base.errors import ModelError
from sapwood.hub import Cache, find, open_files
from sapwood.hub.files import weight_files
from sapwood.hub.pull import pull, short_names


def write_safetensors(path: Path, num_bytes: int = 16) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(num_bytes))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    write_safetensors(folder / "model.safetensors")
    return folder


def shard(model: Path, *present: str) -> None:
    (model / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate(names)}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in present:
        write_safetensors(model / name)


def test_a_directory_is_opened(model: Path) -> None:
    files = open_files(model, name="mine")
    assert (files.name, files.path, files.kind) == ("mine", model, "hf")
    assert files.config == {"architectures": ["LlamaForCausalLM"]}
    assert files.generation_config == {"eos_token_id": [1, 2]}
    assert find(str(model)).path == model


def test_generation_config_is_optional(model: Path) -> None:
    (model / "generation_config.json").unlink()
    assert open_files(model, name="mine").generation_config == {}


def test_all_shards_are_found(model: Path) -> None:
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    shard(model, *names)
    assert [file.name for file in weight_files(model)] == names


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda m: (m / "config.json").unlink(), "has no config.json"),
        (lambda m: (m / "config.json").write_text('{"architectures": ["Ll'), r"config\.json is not valid JSON"),
        (lambda m: (m / "config.json").write_text("[]"), r"config\.json must hold a JSON object"),
        (lambda m: (m / "config.json").write_text("[" * 100_000), r"config\.json is not valid JSON"),
        (lambda m: (m / "generation_config.json").write_bytes(b"\xff"), r"generation_config\.json is not valid JSON"),
        (lambda m: (m / "model.safetensors").unlink(), "holds no weights"),
        (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), "Convert them to safetensors"),
        (lambda m: (m / "model.safetensors").write_bytes(b""), "damaged or cut off"),
        (lambda m: (m / "model.safetensors").write_text("version https://git-lfs"), "git lfs pull"),
        (lambda m: write_truncated(m / "model.safetensors"), "promises"),
        (lambda m: shard(m, "model-00002-of-00003.safetensors"), r"misses 2 of 3 .*00001-of.*00003-of"),
    ],
)
def test_a_broken_directory_is_refused_in_words(model: Path, break_it: object, says: str) -> None:
    break_it(model)  # type: ignore[operator]
    with pytest.raises(ModelError, match=says):
        open_files(model, name="mine")


def write_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def test_weights_are_not_needed_for_random_ones(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert open_files(model, name="mine", weights=False).kind == "hf"


def test_several_gguf_files_have_to_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelError, match=r"a\.gguf, b\.gguf"):
        open_files(tmp_path, name="two")


def test_another_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match=r"neither a directory nor a \.gguf"):
        find(str(tmp_path / "weights.bin"))


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'nonesuch'.*directory.*\.gguf.*smollm2-135m.*sapwood pull"):
        find("nonesuch", cache=Cache(tmp_path))
    with pytest.raises(ModelError, match="no model '/no/such/path'"):
        find("/no/such/path", cache=Cache(tmp_path))
    with pytest.raises(ModelError, match=r"^models/none\.gguf does not exist\.$"):  # looks like a hub id, is none
        find("models/none.gguf", cache=Cache(tmp_path))


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> str:
        try:
            raise ConnectionError("Name or service not known\nand much more")
        except ConnectionError as error:
            raise RuntimeError("a long story") from error

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelError, match=r"^org/name could not be fetched from the hub: Name or service not known\.$"):
        pull("org/name", cache=Cache(tmp_path))
    with pytest.raises(ModelError, match=r"no local path.*not known.*sapwood pull org/name"):
        find("org/name", cache=Cache(tmp_path))


def test_a_cached_hub_model_needs_no_network(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    snapshot = cache.hub / "models--org--name" / "snapshots" / "abc123"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    (cache.hub / "models--org--name" / "refs").mkdir()
    (cache.hub / "models--org--name" / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    assert find("org/name", cache=cache).path == snapshot
    assert find("org/name", cache=cache, revision="abc123").path == snapshot
    assert [entry.name for entry in cache.models()] == ["org/name"]


def test_an_interrupted_hub_pull_is_resumed(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    snapshot = cache.hub / "models--org--name" / "snapshots" / "abc123"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    (snapshot / "model.safetensors").unlink()

    def resume(name: str, *, cache_dir: Path, **_: object) -> str:
        assert (name, cache_dir) == ("org/name", cache.hub)
        write_safetensors(snapshot / "model.safetensors")
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.model_info", None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", resume)
    assert find("org/name", cache=cache, revision="abc123").path == snapshot


def test_what_is_no_name_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a short name"):
        pull("a/b/c", cache=Cache(tmp_path))
    assert short_names().startswith("smollm2-135m")
