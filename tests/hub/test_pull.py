"""Pulling a packaged model with the real pip, out of a local folder of wheels."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sapwood.base.errors import ModelError
from sapwood.hub import CATALOG, Cache, Packaged
from sapwood.hub.catalog import PERMISSIVE, Beside, Wheel
from sapwood.hub.pull import pull
from tests.waiting import SECONDS

PARTS = (b"GGUF" + bytes(3000), b"second part" * 500)
WHOLE = b"".join(PARTS)
SMALL = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
TINY = Packaged(
    name="tiny",
    about="two parts",
    licence="MIT",
    file="tiny.gguf",
    size=len(WHOLE),
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    wheels=(
        Wheel("tiny-model-part1", "1.0", "tiny_model_part1/tiny.part1"),
        Wheel("tiny-model-part2", "1.0", "tiny_model_part2/tiny.part2"),
    ),
)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for wheel, content in zip(TINY.wheels, PARTS, strict=True):
        stem = wheel.package.replace("-", "_")
        info = f"{stem}-{wheel.version}.dist-info"
        with zipfile.ZipFile(folder / f"{stem}-{wheel.version}-py3-none-any.whl", "w") as archive:
            archive.writestr(wheel.member, content)
            for name, beside in SMALL.items():
                archive.writestr(f"{stem}/{name}", beside)
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def fetch(shelf: Path, cache: Cache) -> Callable[..., Path]:
    def fetch(
        model: Packaged = TINY, shelf: Path = shelf, progress: Callable[[str, int, int], None] | None = None
    ) -> Path:
        return pull(model, cache=cache, progress=progress, pip_args=["--no-index", "--find-links", str(shelf)])

    return fetch


def leftovers(cache: Cache) -> list[Path]:
    return [path for path in cache.root.rglob("*") if path.is_file()]


def test_parts_are_joined_verified_and_kept(cache: Cache, fetch: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch(progress=lambda *news: seen.append(news))
    assert path == cache.path_of(TINY)
    assert path.read_bytes() == WHOLE
    assert {stage for stage, _, _ in seen} == {"download", "unpack"}
    assert seen[-1] == ("unpack", len(WHOLE), len(WHOLE))
    assert leftovers(cache) == [path]
    assert fetch(shelf=tmp_path / "gone") == path  # cached: pip is not asked


def test_a_wrong_hash_leaves_nothing(cache: Cache, fetch: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="SHA-256"):
        fetch(replace(TINY, sha256="0" * 64))
    assert leftovers(cache) == []


def test_a_package_without_the_file(cache: Cache, fetch: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"tiny_model_part1.*not what was expected"):
        fetch(replace(TINY, wheels=(Wheel("tiny-model-part1", "1.0", "elsewhere"),)))
    assert leftovers(cache) == []


def test_a_package_that_cannot_be_had(cache: Cache, fetch: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^pip could not fetch tiny-model-part1 1\.0: .*\S"):
        fetch(shelf=tmp_path)
    assert leftovers(cache) == []


def test_an_interruption_leaves_nothing(cache: Cache, fetch: Callable[..., Path]) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "unpack":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(progress=interrupt)
    assert leftovers(cache) == []
    assert fetch().read_bytes() == WHOLE


def test_two_pulls_at_once(fetch: Callable[..., Path]) -> None:
    both_unpack = threading.Barrier(2)

    def meet(stage: str, done: int, total: int) -> None:
        if done == total and stage == "unpack":
            both_unpack.wait(SECONDS)

    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(progress=meet).read_bytes())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [WHOLE, WHOLE]


def test_a_python_without_pip(fetch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ModelError, match="-m ensurepip"):
        fetch()


def test_a_cache_that_cannot_be_made(fetch: Callable[..., Path], cache: Cache) -> None:
    cache.root.write_text("a file is in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        fetch()


def test_what_a_killed_pull_left_is_swept_later(cache: Cache) -> None:
    with cache.partial() as fresh:
        (old := fresh.parent / "old").mkdir()
        os.utime(old, (time.time() - 1e6,) * 2)
        with cache.partial():
            assert fresh.exists()
            assert not old.exists()
    assert not fresh.exists()


def test_a_cut_off_file_is_not_taken_for_the_model(cache: Cache, fetch: Callable[..., Path]) -> None:
    path = fetch()
    path.write_bytes(WHOLE[:-1])
    assert not cache.has(TINY)
    assert fetch().read_bytes() == WHOLE


def test_the_catalog_is_complete() -> None:
    names = [model.name for model in CATALOG]
    assert len(set(names)) == len(names)
    for model in CATALOG:
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.size > 0
        assert model.wheels
        assert model.licence
        assert bool(model.terms) == (model.licence.lower() not in PERMISSIVE)
    assert [model.name for model in CATALOG if not model.terms] == [
        "smollm2-135m", "minilm", "whisper-base", "whisper-tiny.en",
    ]  # fmt: skip


def test_terms_are_told_before_anything_is_fetched(
    fetch: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = replace(TINY, licence="Tiny", terms="Use is subject to the Tiny Terms, https://tiny.example.")
    with pytest.raises(ModelError, match="could not fetch"):
        fetch(bound, shelf=tmp_path)
    told = "tiny has the licence Tiny. Use is subject to the Tiny Terms, https://tiny.example.\n"
    assert capsys.readouterr().err == told
    fetch(bound)
    assert capsys.readouterr().err == told
    fetch(bound)
    assert not capsys.readouterr().err, "it is in the cache already"


def test_a_permissive_licence_is_not_told(fetch: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    fetch()
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ({"license": "mit"}, ""),
        ({"license": "gemma"}, "org/name has the licence gemma. See the model card for its terms.\n"),
        (
            {"license": "other", "license_name": "own", "license_link": "https://own.example"},
            "org/name has the licence own. https://own.example\n",
        ),
        (None, "org/name says nothing of its licence. See the model card for its terms.\n"),
    ],
)
def test_a_hub_model_s_licence_is_told(
    card: dict[str, str] | None,
    told: str,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: SimpleNamespace(card_data=card))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cache.root))
    pull("org/name", cache=cache)
    assert capsys.readouterr().err == told


def test_a_directory_is_a_file_and_others_beside_it(cache: Cache, fetch: Callable[..., Path]) -> None:
    beside = tuple(Beside(name, hashlib.sha256(content).hexdigest()) for name, content in SMALL.items())
    model = replace(TINY, name="folder", file="tiny.part1", beside=beside)
    with pytest.raises(ModelError, match=r"config\.json is not the file that was reviewed"):
        fetch(replace(model, beside=(replace(beside[0], sha256="0" * 64),)))
    assert not cache.has(model) and leftovers(cache) == []
    path = fetch(model)
    assert path == cache.path_of(model) and cache.has(model)
    assert {str(one.relative_to(path)): one.read_bytes() for one in leftovers(cache)} == {"tiny.part1": WHOLE, **SMALL}
