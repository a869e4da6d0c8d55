"""`sapwood doctor`: what was found on this machine, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sapwood.base.errors import SapwoodError

if TYPE_CHECKING:
    from sapwood.catalogue import Catalogue

HELP = "print what was found, what is missing and the command that mends it"

_MARKS = {"ok": "ok", "note": "--", "bad": "!!"}
_OPTIONAL = {
    "uvloop": "a faster event loop",
    "httptools": "a faster HTTP parser",
    "opentelemetry-exporter-otlp-proto-http": "traces (--otlp-traces-endpoint)",
    "triton": "kernels for CUDA devices",
    "transformers": "families that are not Sapwood's own (--model-impl)",
    "llmcompressor": "checkpoints in fewer bits (sapwood quantize)",
    "nvidia-cudnn-frontend": "faster long prompts on Hopper GPUs and later",
}


@dataclass(frozen=True)
class Check:
    """One finding. `note` can be lived with; `bad` cannot."""

    what: str
    state: Literal["ok", "note", "bad"]
    found: str
    mend: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from sapwood.cli.terminal import console, print_rows

    checks = list(check_all())
    print_rows(console(), [(_MARKS[c.state], c.what, c.found + (f"  ->  {c.mend}" if c.mend else "")) for c in checks])
    return 1 if any(check.state == "bad" for check in checks) else 0


def check_all() -> Iterator[Check]:
    """Every check, cheap ones first."""
    yield _python()
    yield from _requirements()
    yield from _optional()
    yield from _plugins()
    if importlib.util.find_spec("torch"):
        yield from _devices()
        yield _kernels()
    yield _formats()
    yield _cache()


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", "ok" if good else "bad", found, "" if good else "install Python 3.11 or newer")


def _requirements() -> Iterator[Check]:
    """What the package itself says that it needs; the version ranges matter for torch only."""
    try:
        lines = importlib.metadata.requires("sapwood") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("sapwood", "bad", "runs from a folder and is not installed", "pip install -e .")
        return
    for line in lines:
        name, marker = re.split(r"[^\w.-]", line, maxsplit=1)[0], line.partition(";")[2]
        if "extra" in marker:
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "bad", "missing", f"pip install '{line.strip()}'")
            continue
        if name == "torch" and not _torch_supported(version):
            yield Check(name, "bad", f"{version} is not supported", f"pip install '{line.strip()}'")
        elif name == "torch":
            yield Check(name, "ok", version)


def _torch_supported(version: str) -> bool:
    major, minor = (int(part) for part in version.split(".")[:2])
    return (2, 11) <= (major, minor) < (2, 14)


def _optional() -> Iterator[Check]:
    for name, purpose in _OPTIONAL.items():
        try:
            yield Check(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "note", f"not installed: {purpose}", f"pip install {name}")


def _plugins() -> Iterator[Check]:
    """What other packages bring, each by itself and then all together."""
    from sapwood.base.errors import ConfigError
    from sapwood.catalogue import Catalogue, joined

    catalogue, whole = joined(), []
    unknown = dict(catalogue.unknown)
    for plugin in catalogue.plugins:
        what, mend = f"plug-in {plugin.name}", f"pip uninstall {plugin.package.split()[0]}"
        if plugin in unknown:
            yield Check(what, "bad", unknown[plugin], mend)
            continue
        try:
            plugin.load()
            _ask(Catalogue((plugin,)))
        except ConfigError as error:
            yield Check(what, "bad", str(error), mend)
        else:
            whole.append(plugin)
            yield Check(what, "ok", f"sapwood.{plugin.kind}, {plugin.point.value} of {plugin.package}")
    try:
        _ask(Catalogue(tuple(whole)))
    except ConfigError as error:
        yield Check("plug-ins", "bad", str(error), "pip uninstall one of them")


def _ask(catalogue: Catalogue) -> None:
    """Ask for all that there is, as those do who start an engine. Raises ConfigError."""
    catalogue.check()
    if importlib.util.find_spec("torch"):
        from sapwood.attention.select import BACKENDS, NAMES, Offer

        catalogue.join("backends", BACKENDS, Offer, NAMES)


def _devices() -> Iterator[Check]:
    import torch

    from sapwood.config.resolve import gib
    from sapwood.device import cuda, probe

    cpu = probe("cpu")
    state: Literal["ok", "note"] = "ok" if cpu.free_memory > 1 << 30 else "note"
    mend = "" if state == "ok" else "close other programs: less than 1 GiB is free"
    memory = f"{gib(cpu.free_memory)} of {gib(cpu.total_memory)} free"
    yield Check("cpu", state, f"{cpu.name}, {cpu.num_cores} cores, {memory}", mend)
    refused = cuda.refuse()
    for index in range(0 if refused else torch.cuda.device_count()):
        gpu = probe(f"cuda:{index}")
        memory = f"{gib(gpu.free_memory)} of {gib(gpu.total_memory)} free"
        yield Check(f"cuda:{index}", "ok", f"{gpu.name}, {memory}; it has {', '.join(sorted(gpu.abilities))}")
    if refused and Path("/proc/driver/nvidia/version").exists():
        mend = "pip install --force-reinstall torch, a build with CUDA"
        yield Check("cuda", "bad", f"there is an NVIDIA driver, and torch {torch.__version__} does not use it", mend)
    elif refused:
        yield Check("cuda", "note", f"models run on the CPU: {refused}")


def _kernels() -> Check:
    from sapwood.kernels.cpu.library import find

    library = find()
    if isinstance(library, str):
        mend = "apt install g++ (or what your system has), then pip install sapwood once more"
        return Check("cpu kernels", "note", f"PyTorch computes on the CPU, several times slower: {library}", mend)
    return Check("cpu kernels", "ok", f"the build for {library.target}")


def _formats() -> Check:
    from sapwood.catalogue import joined

    try:
        known = ", ".join(sorted(joined().methods))
    except SapwoodError as error:  # the plug-in is told of above
        return Check("weights", "bad", str(error))
    return Check(
        "weights",
        "ok",
        f"plain, GGUF's blocks, or quantised as {known}; `sapwood explain MODEL` says what is multiplied",
    )


def _cache() -> Check:
    from sapwood.config.resolve import gib
    from sapwood.hub.cache import Cache

    cache = Cache.default()
    models = ", ".join(f"{model.name} ({gib(model.size)})" for model in cache.models())
    if models:
        return Check("models", "ok", f"{models} in {cache.root}")
    return Check("models", "note", f"none yet in {cache.root}", "sapwood pull smollm2-135m")
