"""What docs/extending.md and docs/tour.md show works as it stands there: every file, in a package of its own or as a line of the
root has it."""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

import sapwood
from sapwood import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.catalogue import joined
from sapwood.config import Config
from sapwood.server.app import ROOMS, create_app
from tests import models
from tests.engine.test_drafts import same, say
from tests.engine.whole import prompts_that_share
from tests.quant.test_methods import save as save_rows
from tests.server.fakes import MODEL, FakeEngine, make_text

PAGES = [Path(sapwood.__file__).parents[1] / "docs" / name for name in ("extending.md", "tour.md")]
BLOCK = re.compile(r"```python\n# (\w+)\.py\n(.*?)```", re.DOTALL)
POINTS = {"families": "gourd = gourd:FAMILY", "backends": "sdpa = sdpa:OFFER", "methods": "rows = rows:choose"}
GREEDY = [(prompt, SamplingParams(max_tokens=20, temperature=0)) for prompt in prompts_that_share(8)]


@pytest.fixture(scope="module", autouse=True)
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pages' files as pip would have installed them."""
    folder = tmp_path_factory.mktemp("examples")
    for page in PAGES:
        for name, code in BLOCK.findall(page.read_text()):
            (folder / f"{name}.py").write_text(code)
    info = folder / "sapwood_examples-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sapwood-examples\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("\n".join(f"[sapwood.{kind}]\n{line}\n" for kind, line in POINTS.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("llama"))


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_every_file_is_tried(examples: Path) -> None:
    tried = set(re.findall(r"(\w+) = \w+:", "\n".join(POINTS.values()))) | {
        "lookup",
        "gate",
        "shelf",
        "questions",
        "chunks",
    }
    assert {file.stem for file in examples.glob("*.py")} == tried
    assert {(plugin.kind, plugin.name) for plugin in joined().plugins} >= {
        (kind, line.split()[0]) for kind, line in POINTS.items()
    }


def test_a_family(llama: Path, tmp_path: Path) -> None:
    models.save("llama", tmp_path, architectures=["GourdForCausalLM"], curve="soft")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"attention_bias": False, "mlp_bias": False}))
    weights = {name: one for name, one in load_file(llama / "model.safetensors").items() if not name.endswith("bias")}
    save_file(weights, tmp_path / "model.safetensors")
    plain = tmp_path / "plain"
    plain.mkdir()
    save_file(weights, plain / "model.safetensors")
    known = config | {"attention_bias": False, "mlp_bias": False, "architectures": ["LlamaForCausalLM"]}
    (plain / "config.json").write_text(json.dumps({name: one for name, one in known.items() if name != "curve"}))
    same(say(tmp_path, GREEDY)[0], say(plain, GREEDY)[0])


def test_a_method(tmp_path: Path) -> None:
    """As the same weights widened before they are read."""
    rows, wide = save_rows(tmp_path / "rows", "llama"), models.save("llama", tmp_path / "wide")
    found = load_file(rows / "model.safetensors")
    scales = {name: one for name, one in found.items() if name.endswith("weight_scale")}
    for name, scale in scales.items():
        weight = name.removesuffix("_scale")
        found[weight] = found[weight].float() * scale[:, None]
        del found[name]
    save_file(found, wide / "model.safetensors")
    assert scales and all(one.dtype == torch.float32 for one in found.values())
    same(say(rows, GREEDY)[0], say(wide, GREEDY)[0])


def test_a_backend(llama: Path) -> None:
    same(say(llama, GREEDY, attention_backend="sdpa")[0], say(llama, GREEDY)[0])


def test_a_drafter(llama: Path) -> None:
    again = [(prompt * 3, params) for prompt, params in GREEDY]
    wanted, plain = say(llama, again, max_num_seqs=1)
    found, counters = say(llama, again, max_num_seqs=1, stakes=example("lookup").stakes)
    same(found, wanted)
    assert counters["steps"] < plain["steps"]


def test_a_stake(llama: Path) -> None:
    gate = example("gate")
    threading.Timer(0.3, gate.gate.opened.set).start()
    same(say(llama, GREEDY, stakes=gate.stakes)[0], say(llama, GREEDY)[0])
    assert gate.gate.opened.is_set()


def test_a_store(llama: Path) -> None:
    """The cache holds few prompts, so that those that come again are found on the shelf."""
    twice = [((prompt * 20)[:100], params) for prompt, params in GREEDY] * 2
    shelves: list[Any] = []

    def stakes(slots: Slots) -> Sequence[Stake]:
        shelves.append(example("shelf").Shelf(slots, 16))
        return shelves

    few: dict[str, Any] = {"page_size": 16, "max_total_tokens": 256, "max_num_seqs": 1}
    wanted, plain = say(llama, twice, **few)
    found, counters = say(llama, twice, stakes=stakes, **few)
    same(found, wanted)
    assert shelves[0].num_brought > 4 * len(GREEDY)
    assert counters["prompt_tokens"] < 0.6 * plain["prompt_tokens"]


def test_the_first_change(llama: Path) -> None:
    chunks = example("chunks").Chunks()
    found, _ = say(llama, GREEDY, stakes=lambda slots: (chunks,), max_num_batched_tokens=16)
    same(found, say(llama, GREEDY)[0])
    counts, _ = chunks.gauges()
    assert counts["prompt_chunks"] > len(GREEDY)


@pytest.mark.anyio
async def test_a_dialect(tmp_path: Path) -> None:
    text = make_text(tmp_path)
    app = create_app(FakeEngine(text), text, Config(), MODEL, rooms=(*ROOMS, example("questions").ROOM))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        reply = await http.post("/ask", json={"question": "Hello?", "most": 8})
        assert reply.status_code == 200
        events: list[Any] = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
        assert events.pop() == "[DONE]"
        whole = await http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 8}
        )
        said = "".join(json.loads(event)["text"] for event in events)
        assert said == whole.json()["choices"][0]["message"]["content"]
        wrong = await http.post("/ask", json={"most": 8})
        assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "question"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
