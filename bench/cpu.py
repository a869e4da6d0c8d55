"""The CPU path beside llama.cpp's, on this machine, in one run, with the small real model or a mixture of experts.

    python bench/cpu.py                                   Q4_1 as shipped, Q8_0 and Q4_0, medians of 5
    python bench/cpu.py --weights Q4_1 --only c1 c5 --runs 3
    python bench/cpu.py --shape qwen3-moe-1b --weights Q4_0 --only c1 c2      random weights, 1 B of which 0.2 B are used
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
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from time import monotonic, sleep
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import gguf
import written

from sapwood.bench.load import Load, Server, send
from sapwood.bench.report import Table
from sapwood.bench.spawn import running
from sapwood.bench.statistics import Figures, median_of, serving_figures
from sapwood.bench.traffic import Traffic
from sapwood.cli.terminal import console, print_tables

PEER, VERSION = "llama-cpp-python", "0.3.36"
WEIGHTS = ("Q4_1", "Q8_0", "Q4_0")
SLOTS, SLOT_LEN = 32, 1280
START_SECONDS = 120

SWITCHES = "GGML_NATIVE=ON LLAMA_BUILD_TESTS=OFF LLAMA_BUILD_EXAMPLES=OFF LLAMA_CURL=OFF LLAMA_OPENSSL=OFF"
NO_TILES = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"

ENGINES = {
    "sapwood": f"""$python -m sapwood serve --model $path --port $port --threads $threads --max-num-seqs {SLOTS}
        --max-model-len {SLOT_LEN} --served-model-name m --device cpu --log-level warning $options""",
    "llama.cpp": f"""$tools/llama-server -m $path --port $port -t $threads -tb $threads -np {SLOTS} -c {SLOTS * SLOT_LEN}
        -a m --no-webui --log-disable""",
}
"""How each serves a model as `m` on a port."""


class Case(NamedTuple):
    """So many requests at once, and what is read off their figures."""

    name: str
    traffic: Traffic
    count: int
    read: Callable[[dict[str, Any]], Figures]


SHORT, SHARED = Traffic("random", 128, 128), Traffic("shared-prefix", 32, 32, prefix_len=1024, groups=1)
CASES = (
    Case("c1", SHORT, 1, lambda f: {"c1 decode tok/s": 1e3 / f["tpot_ms_p50"], "c1 TTFT ms": f["ttft_ms_p50"]}),
    Case("c2", SHORT, 8, lambda f: {"c2 tok/s": f["output_tok_s"]}),
    Case("c3", SHORT, 32, lambda f: {"c3 tok/s": f["output_tok_s"]}),
    Case("c4", SHARED, 16, lambda f: {"c4 cold s": f["seconds"]}),
    Case("c4", SHARED, 16, lambda f: {"c4 warm s": f["seconds"]}),
    Case("c5", Traffic("random", 1024, 1), 1, lambda f: {"c5 prompt tok/s": 1024e3 / f["ttft_ms_p50"]}),
)
NAMES = (*dict.fromkeys(case.name for case in CASES), "c6", "c7")


def main() -> int:
    args = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    folder, shipped = Path(args.cache).expanduser(), model()
    alone = args.engines == ["sapwood"] and (args.shape is not None or list(args.weights) == ["Q4_1"])
    paths = {"python": sys.executable, "tools": "" if alone else build(folder)}
    found: dict[str, dict[str, list[Figures]]] = {}
    for weights in args.weights:
        if args.shape is not None:
            path = made(args.shape, weights, shipped, folder)
        else:
            path = shipped if weights == "Q4_1" else requantised(build(folder), shipped, weights, folder)
        words = {name: shlex.quote(str(each)) for name, each in {**paths, "path": path}.items()}
        found[weights] = {name: [] for name in args.engines}
        for _ in range(args.runs):  # in turns, since the machine is not equally fast at all times
            for name in args.engines:
                command = Template(ENGINES[name]).safe_substitute(words, threads=args.threads, options=args.options)
                found[weights][name].append(measure(Template(command), args.only))
                print(weights, name, found[weights][name][-1], flush=True)
                if args.json:
                    args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print_tables(console(), [table(weights, runs) for weights, runs in found.items()])
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS)
    parser.add_argument(
        "--shape", choices=written.SHAPES, help="random weights of this shape instead of the small model"
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--runs", type=int, default=5, help="of each, in turns; medians are shown")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of either engine")
    parser.add_argument("--options", default="", help="further ones of `sapwood serve`, in one word")
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
        compiler = subprocess.run(["c++", "-dumpversion"], capture_output=True, text=True, check=True).stdout
        if platform.machine() == "x86_64" and int(compiler.split(".")[0]) <= 12:
            # GCC 12 leaves out the writes of an AMX tile's shape: the peer would crash.
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


def requantised(tools: Path, shipped: Path, weights: str, folder: Path) -> Path:
    """The same weights in another type: what was lost on the way to Q4_1 stays lost, which matters to no figure here."""
    path = folder / f"{shipped.stem}.{weights}.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        command = [str(tools / "llama-quantize"), "--allow-requantize", str(shipped), str(partial), weights]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        partial.rename(path)
    return path


def made(shape: str, weights: str, shipped: Path, folder: Path) -> Path:
    """Random weights with the small model's tokens."""
    path = folder / f"{shape}.{weights}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        written.write(written.SHAPES[shape], gguf.GGMLQuantizationType[weights], shipped, partial)
        partial.rename(path)
    return path


# -- what is measured --------------------------------------------------------------------------------------------------


def measure(engine: Template, names: Sequence[str]) -> Figures:
    """The cases of these names on one server."""
    found: Figures = {}
    with serving(engine) as (server, seconds, memory):
        ask(server, Traffic("random", 16, 8), 2, seed=99)  # warm
        for case in (case for case in CASES if case.name in names):
            found |= case.read(ask(server, case.traffic, case.count, seed=int(case.name[1:])))
        found |= {"c6 MiB": max(memory) / 2**20} if "c6" in names else {}
        found |= {"c7 s": seconds} if "c7" in names else {}
    return {name: round(value or 0, 3) for name, value in found.items()}


def ask(server: Server, traffic: Traffic, count: int, *, seed: int) -> Figures:
    """Figures of so many requests, all at once."""
    streams, messages = asyncio.run(send(server, traffic, Load("closed", count, count, seed=seed)))
    if messages:
        raise ConnectionError(f"cpu: {server.url} answered with errors: {messages}")
    return serving_figures(streams)


@contextmanager
def serving(engine: Template) -> Iterator[tuple[Server, float, list[int]]]:
    """A server, the seconds it took to its first token, and the memory of its processes, ten times a second."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    command, server = engine.substitute(port=port), Server(url=f"http://127.0.0.1:{port}", model="m")
    began, over, memory = monotonic(), threading.Event(), [0]
    with running(shlex.split(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def watch() -> None:
            while not over.wait(0.1):
                memory.append(sum(map(resident, family(process.pid))))

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield server, first_token(server, process, began), memory
        finally:
            over.set()


def first_token(server: Server, process: subprocess.Popen[str], began: float) -> float:
    """Seconds until there was one."""
    while True:
        try:
            ask(server, Traffic("random", 4, 1), 1, seed=0)
            return monotonic() - began
        except ConnectionError as error:
            if process.poll() is not None or monotonic() - began > START_SECONDS:
                raise SystemExit(f"cpu: no first token from {process.args}: {error}") from None
            sleep(0.01)


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


def table(weights: str, runs: dict[str, list[Figures]]) -> Table:
    """Medians, and ours over the peer's so that more than 1 is always better."""
    medians = [median_of(some) for some in runs.values()]
    lines = [[name, *(f"{found[name] or 0:,.2f}" for found in medians)] for name in medians[0]]
    if len(medians) == 1:
        return Table([weights, *runs], lines)
    ours, theirs = medians
    for line in lines:
        ratio = (ours[line[0]] or 0) / (theirs[line[0]] or 1)
        line.append(f"{ratio if line[0].endswith('tok/s') else 1 / ratio:.2f}")
    return Table([weights, *runs, "ratio"], lines)


if __name__ == "__main__":
    raise SystemExit(main())
