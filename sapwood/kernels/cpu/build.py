"""How the library is built: once for each kind of processor, of which one is chosen when it is loaded.

As a program it builds into its own folder what is outdated there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).parent
VERSION = 12
"""Of the interface between the library and its callers; a library of another version is not loaded."""

_X86: Mapping[str, str] = {
    "base": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx2vnni": "-mavx2 -mfma -mf16c -mavxvnni",
    "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512",
}
_ARM: Mapping[str, str] = {"base": "", "neon": "-march=armv8.2-a+dotprod+fp16"}
TARGETS: Mapping[str, Mapping[str, str]] = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}
"""Compiler flags by machine and by kind of processor."""

_FLAGS = (
    "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off "
    "-fvisibility=hidden -fPIC -shared -pthread -Wno-psabi -Wno-maybe-uninitialized"
)


def library(folder: Path, target: str) -> Path:
    return folder / f"sapwood_cpu_{target}.so"


def compiler(wanted: str | None = None) -> str | None:
    """The C++ compiler's command: the wanted one, else the first of the usual names that there is."""
    for name in (wanted, "c++", "g++", "clang++"):
        if name and (found := shutil.which(name.split()[0])):
            return " ".join([found, *name.split()[1:]])
    return None


def targets() -> Mapping[str, str]:
    """The kinds of this machine's processors, with their flags; none where the sources know nothing of it."""
    return TARGETS.get(platform.machine().lower(), {"base": ""})


def outdated(output: Path) -> bool:
    """Whether there is no such library, or one older than what it is made from, this file included."""
    made_from = (path for path in SOURCE.iterdir() if path.suffix in (".cpp", ".h") or path == Path(__file__))
    return not output.exists() or output.stat().st_mtime <= max(path.stat().st_mtime for path in made_from)


def build(folder: Path, *, cxx: str | None = None) -> dict[str, str]:
    """Compile every kind whose library in `folder` is outdated; returns what failed and how, by kind."""
    command = compiler(cxx)
    wanted = {name: flags for name, flags in targets().items() if outdated(library(folder, name))}
    if command is None:
        return dict.fromkeys(wanted, "no C++ compiler was found (c++, g++, clang++ or $CXX)")
    folder.mkdir(parents=True, exist_ok=True)

    def one(name: str) -> str | None:
        output = library(folder, name)
        made = output.with_suffix(f".{os.getpid()}")  # moved to its place when whole: others may be loading it
        arguments = [*command.split(), *_FLAGS.split(), *wanted[name].split(), f"-DSAPWOOD_CPU_VERSION={VERSION}"]
        done = subprocess.run(
            [*arguments, "-o", str(made), str(SOURCE / "sapwood_cpu.cpp")], capture_output=True, text=True, check=False
        )
        if done.returncode:
            made.unlink(missing_ok=True)
            return done.stderr.strip() or f"{command} ended with code {done.returncode}"
        made.replace(output)
        return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = dict(zip(wanted, pool.map(one, wanted), strict=True))
    return {name: error for name, error in results.items() if error is not None}


if __name__ == "__main__":
    for kind, error in build(SOURCE / "lib", cxx=os.environ.get("CXX")).items():
        print(f"{kind}: {error}", file=sys.stderr)
