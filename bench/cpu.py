"""The CPU path beside llama.cpp's, on this machine, in one run, with the small real model.

    python bench/cpu.py                                   Q4_1 as shipped, Q8_0 and Q4_0, medians of 5
    python bench/cpu.py --weights Q4_1 --only c1 c5 --runs 3
    python bench/cpu.py --engines sapwood                 without the peer
    python bench/cpu.py --json found.json

The peer is built here from the sources that the package llama-cpp-python carries (cmake, ninja and a C++ compiler are
needed, and a quarter of an hour the first time), for this very processor. Both are asked over HTTP by the client of
`sapwood bench serve`, one server at a time, with the same token ids; lengths are exact.

    c1  one stream, 128 tokens in and out: tokens a second once the first is there, and the time to that one
    c2  8 streams of that at once, c3 32: output tokens a second over the whole time
    c4  16 requests over one prefix of 1024 tokens, 32 of their own, 32 out: seconds, cold and once more
    c5  a prompt of 1024 tokens: prompt tokens a second until the first token
    c6  peak resident memory of all processes of the server, MiB
    c7  seconds from the start of the process to the first token of a short prompt
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.request import Request, urlopen

from sapwood.bench.load import Load, Server, send
from sapwood.bench.report import Table
from sapwood.bench.spawn import running
from sapwood.bench.statistics import serving_figures
from sapwood.bench.traffic import Traffic
from sapwood.cli.terminal import console, print_tables

PEER, VERSION = "llama-cpp-python", "0.3.36"
WEIGHTS = ("Q4_1", "Q8_0", "Q4_0")
CASES = ("c1", "c2", "c3", "c4", "c5", "c6", "c7")
SLOTS, SLOT_LEN = 32, 1280
START_SECONDS = 120
MORE_IS_BETTER = {"c1 decode tok/s", "c2 tok/s", "c3 tok/s", "c5 prompt tok/s"}

SWITCHES = "GGML_NATIVE=ON LLAMA_BUILD_TESTS=OFF LLAMA_BUILD_EXAMPLES=OFF LLAMA_CURL=OFF LLAMA_OPENSSL=OFF"
NO_TILES = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
TILES = """
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
int main() {
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return 1;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    alignas(64) unsigned char shape[64] = {1};
    shape[16] = 64, shape[48] = 16;
    _tile_loadconfig(shape);
    _tile_zero(0);
    _tile_release();
}
"""

Command = Callable[[Path, int, argparse.Namespace], list[str]]
"""How an engine serves a model on a port."""


def main() -> int:
    args = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    folder = Path(args.cache).expanduser()
    shipped = model()
    engines: dict[str, Command] = {"sapwood": sapwood, "llama.cpp": lambda *given: llama(build(folder), *given)}
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for weights in args.weights:
        path = shipped if weights == "Q4_1" else requantised(build(folder), shipped, weights, folder)
        found[weights] = {name: {} for name in args.engines}
        for _ in range(args.runs):  # in turns, since the machine is not equally fast at all times
            for name in args.engines:
                run = measure(engines[name], path, args)
                for figure, value in run.items():
                    found[weights][name].setdefault(figure, []).append(value)
                print(weights, name, {figure: round(value, 2) for figure, value in run.items()}, flush=True)
                if args.json:
                    args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    show(found)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=("sapwood", "llama.cpp"), default=["sapwood", "llama.cpp"])
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--runs", type=int, default=5, help="of each, in turns; medians are shown")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of either engine")
    parser.add_argument("--options", type=shlex.split, default=[], help="further ones of `sapwood serve`, in one word")
    parser.add_argument("--cache", default="~/.cache/sapwood/bench", help="where the peer is built")
    parser.add_argument("--json", type=Path, help="write what was found here")
    return parser.parse_args()


# -- who is measured ---------------------------------------------------------------------------------------------------


def model() -> Path:
    """The real small model, pulled if need be."""
    from sapwood.hub.files import find

    subprocess.run([sys.executable, "-m", "sapwood", "pull", "smollm2-135m"], check=True, stdout=subprocess.DEVNULL)
    return find("smollm2-135m").path


def build(folder: Path) -> Path:
    """Where llama-server and llama-quantize are, built for this machine."""
    built = folder / f"{PEER}-{VERSION}" / "bin"
    if (built / "llama-server").exists():
        return built
    if missing := [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]:
        raise SystemExit(
            f"cpu: {', '.join(missing)}: needed to build the peer and not here; on Debian: apt install cmake ninja-build g++"
        )
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        tree, made = fetch(Path(temporary)), Path(temporary) / "made"
        switches = [*SWITCHES.split(), "CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF"]
        if platform.machine() == "x86_64" and not tiles_work(Path(temporary)):
            switches += [f"CMAKE_{language}_FLAGS={NO_TILES}" for language in ("C", "CXX")]
        subprocess.run(["cmake", "-S", tree, "-B", made, "-G", "Ninja", *(f"-D{s}" for s in switches)], check=True)
        subprocess.run(["cmake", "--build", made, "--target", "llama-server", "llama-quantize"], check=True)
        (made / "bin").rename(built)
    return built


def fetch(folder: Path) -> Path:
    """The peer's sources in `folder`: the archive that the index names, and nothing in it is run."""
    asked = Request(f"https://pypi.org/simple/{PEER}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    name = f"{PEER.replace('-', '_')}-{VERSION}.tar.gz"
    try:
        with urlopen(asked, timeout=60) as answer:
            (archive,) = [file for file in json.load(answer)["files"] if file["filename"] == name]
        with urlopen(archive["url"], timeout=60) as answer:
            data = answer.read()
    except (OSError, ValueError) as error:
        raise SystemExit(f"cpu: {name} cannot be fetched from pypi.org: {error}") from error
    if hashlib.sha256(data).hexdigest() != archive["hashes"]["sha256"]:
        raise SystemExit(f"cpu: {archive['url']} is not what the index says it is; try again")
    with tarfile.open(fileobj=io.BytesIO(data)) as source:
        source.extractall(folder, filter="data")
    return folder / name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"


def tiles_work(folder: Path) -> bool:
    """Whether AMX can be used here. With GCC 12, which leaves out the writes of a tile's shape, the peer would crash."""
    source, program = folder / "tiles.cpp", folder / "tiles"
    source.write_text(TILES)
    subprocess.run(["c++", "-O2", "-mamx-tile", "-o", program, source], check=True)
    return subprocess.run([program], check=False).returncode == 0


def requantised(tools: Path, shipped: Path, weights: str, folder: Path) -> Path:
    """The same weights in another type: what was lost on the way to Q4_1 stays lost, which matters to no figure here."""
    path = folder / f"{shipped.stem}.{weights}.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        command = [str(tools / "llama-quantize"), "--allow-requantize", str(shipped), str(partial), weights]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        partial.rename(path)
    return path


def sapwood(path: Path, port: int, args: argparse.Namespace) -> list[str]:
    words = f"--port {port} --threads {args.threads} --max-num-seqs {SLOTS} --max-model-len {SLOT_LEN}".split()
    words += ["--served-model-name", "m", "--device", "cpu", "--log-level", "warning", *args.options]
    return [sys.executable, "-m", "sapwood", "serve", "--model", str(path), *words]


def llama(tools: Path, path: Path, port: int, args: argparse.Namespace) -> list[str]:
    words = f"--port {port} -t {args.threads} -tb {args.threads} -np {SLOTS} -c {SLOTS * SLOT_LEN}".split()
    return [str(tools / "llama-server"), "-m", str(path), "-a", "m", "--no-webui", "--log-disable", *words]


# -- what is measured --------------------------------------------------------------------------------------------------


def measure(engine: Command, path: Path, args: argparse.Namespace) -> dict[str, float]:
    """All cases on one server."""
    found: dict[str, float] = {}
    with serving(engine, path, args) as (server, seconds, memory):
        if "c7" in args.only:
            found["c7 s"] = seconds
        short, shared = Traffic("random", 128, 128), Traffic("shared-prefix", 32, 32, prefix_len=1024, groups=1)
        load(server, Traffic("random", 16, 8), 2, seed=99)  # warm
        if "c1" in args.only:
            one = load(server, short, 1, seed=1)
            found |= {"c1 decode tok/s": 1e3 / one["tpot_ms_p50"], "c1 TTFT ms": one["ttft_ms_p50"]}
        for case, count in (("c2", 8), ("c3", 32)):
            if case in args.only:
                found[f"{case} tok/s"] = load(server, short, count, seed=count)["output_tok_s"]
        if "c4" in args.only:
            for state in ("cold", "warm"):
                found[f"c4 {state} s"] = load(server, shared, 16, seed=4)["seconds"]
        if "c5" in args.only:
            found["c5 prompt tok/s"] = 1024e3 / load(server, Traffic("random", 1024, 1), 1, seed=5)["ttft_ms_p50"]
        if "c6" in args.only:
            found["c6 MiB"] = max(memory) / 2**20
    return found


def load(server: Server, traffic: Traffic, count: int, *, seed: int) -> dict[str, Any]:
    """Figures of so many requests, all at once."""
    streams, messages = asyncio.run(send(server, traffic, Load("closed", count, count, seed=seed)))
    if messages:
        raise SystemExit(f"cpu: {server.url} answered with errors: {messages}")
    return serving_figures(streams)


@contextmanager
def serving(engine: Command, path: Path, args: argparse.Namespace) -> Iterator[tuple[Server, float, list[int]]]:
    """A server, the seconds it took to its first token, and the memory of its processes, ten times a second."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command, server = engine(path, port, args), Server(url=f"http://127.0.0.1:{port}", model="m")
    began, over, memory = monotonic(), threading.Event(), [0]
    with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def watch() -> None:
            while not over.wait(0.1):
                memory.append(sum(map(resident, family(process.pid))))

        threading.Thread(target=watch, daemon=True).start()
        try:
            while asyncio.run(send(replace(server, timeout=60), Traffic("random", 4, 1), Load("closed", 1, 1)))[1]:
                if process.poll() is not None or monotonic() - began > START_SECONDS:
                    raise SystemExit(f"cpu: no first token from {' '.join(command)}")
                sleep(0.01)
            yield server, monotonic() - began, memory
        finally:
            over.set()


def family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(int(child)))]


def resident(pid: int) -> int:
    """Bytes, a page that several processes map shared out among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def show(found: dict[str, dict[str, Any]]) -> None:
    """Medians, and ours over the peer's so that more than 1 is always better."""
    tables = []
    for weights, engines in found.items():
        lines = []
        for figure in dict.fromkeys(figure for figures in engines.values() for figure in figures):
            medians = [statistics.median(figures[figure]) for figures in engines.values()]
            cells = [f"{value:,.2f}" for value in medians]
            if len(medians) > 1:
                ratio = medians[0] / medians[1]
                cells.append(f"{ratio if figure in MORE_IS_BETTER else 1 / ratio:.2f}")
            lines.append([figure, *cells])
        tables.append(Table([weights, *engines, *(["ratio"] if len(engines) > 1 else [])], lines))
    print_tables(console(), tables)


if __name__ == "__main__":
    raise SystemExit(main())
