"""What other packages bring is found, served, and blamed by name: `packages` holds one as pip would have installed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

import sapwood
from sapwood.arch.families import FAMILIES, declare
from sapwood.base.errors import ConfigError, ModelError
from sapwood.catalogue import Catalogue, joined
from sapwood.cli.doctor import Check, check_all
from sapwood.hub.files import open_files
from sapwood.nn.load import load_weights
from sapwood.text.parsers import FORMATS, choose
from tests import models
from tests.nn import forward, ggufs

PACKAGES = Path(__file__).parent / "packages"
Install = Callable[..., None]


@pytest.fixture
def banana(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    monkeypatch.syspath_prepend(str(PACKAGES))
    return joined()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a package with a module of that code, and entry points of these groups."""

    def make(name: str, code: str, **points: str) -> None:
        folder = tmp_path / f"{name}-0.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        groups = [f"[sapwood.{group}]\n{point} = {name}:{point}\n" for group, point in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(groups))
        (tmp_path / f"{name}.py").write_text(code)

    monkeypatch.syspath_prepend(str(tmp_path))
    return make


@pytest.fixture(scope="module")
def peeled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a banana."""
    path = copytree(tiny_model, tmp_path_factory.mktemp("banana") / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"architectures": ["BananaForCausalLM"], "peel": "smooth"}))
    return path


def test_without_packages_there_is_what_sapwood_has() -> None:
    catalogue = Catalogue()
    assert catalogue.families == FAMILIES and catalogue.formats == FORMATS


def test_what_is_brought_joins_what_is_there(banana: Catalogue) -> None:
    assert {(plugin.kind, plugin.package) for plugin in banana.plugins} >= {
        (kind, "sapwood-banana 1.2") for kind in ("families", "tool_formats", "reasoning_formats")
    }
    assert banana.families[: len(FAMILIES)] == FAMILIES
    assert banana.families[-1].architecture == "BananaForCausalLM"
    own, shown = choose("... <banana> <ripen>"), choose("... <banana> <ripen>", formats=banana.formats)
    named = choose("", tools="banana", reasoning="none", formats=banana.formats)
    assert shown.tools == named.tools == banana.formats.tools["banana"] != own.tools
    assert shown.reasoning == banana.formats.reasoning["banana"] and own.reasoning is None
    with pytest.raises(ConfigError, match="--tool-parser banana"):
        choose("", tools="banana")


def test_a_program_serves_it(peeled: Path, tiny_model: Path) -> None:
    """Both processes find the package: the front, and the engine beside it."""
    where = {"PYTHONPATH": os.pathsep.join([str(PACKAGES), str(Path(sapwood.__file__).parents[1])])}
    command = [sys.executable, "-m", "sapwood", "run", "Hello", "--raw", "--max-tokens", "8", "--temperature", "0"]
    options = ["--device", "cpu", "--kv-cache-memory", "16M", "--tool-parser", "banana", "--model"]

    def said(model: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, **more}
        return subprocess.run([*command, *options, str(model)], capture_output=True, env=environment, check=False)

    found, wanted = said(peeled, **where), said(tiny_model, **where)
    assert found.returncode == wanted.returncode == 0, found.stderr
    assert found.stdout == wanted.stdout


def test_the_library_serves_it(banana: Catalogue, peeled: Path, tiny_model: Path) -> None:
    params, options = sapwood.SamplingParams(max_tokens=12, temperature=0), {"device": "cpu", "kv_cache_memory": "16M"}
    (found,), (wanted,) = (sapwood.LLM(str(model), **options).generate("abc", params) for model in (peeled, tiny_model))
    assert found.token_ids == wanted.token_ids


def test_a_backend_that_is_brought(banana: Catalogue, tiny_model: Path) -> None:
    """It is taken where it is asked for by name, and no front imports it."""
    params, options = sapwood.SamplingParams(max_tokens=12, temperature=0), {"device": "cpu", "kv_cache_memory": "16M"}
    found, wanted = (
        sapwood.LLM(str(tiny_model), attention_backend=name, dtype="float32", **options)
        for name in ("mashed", "reference")
    )
    assert (found.facts.attention_backend, wanted.facts.attention_backend) == ("mashed", "reference")
    assert found.generate("abc", params)[0].token_ids == wanted.generate("abc", params)[0].token_ids
    with pytest.raises(ConfigError, match=r"no backend of that name \(auto, triton, .*, mashed\)"):
        sapwood.LLM(str(tiny_model), attention_backend="fried", **options)
    code = "import sys; from sapwood.catalogue import joined; joined().check(); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGES), *sys.path])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_where_it_is_not_installed(peeled: Path) -> None:
    with pytest.raises(ModelError, match=r"\['BananaForCausalLM'\] is not supported; these are: .*Llama"):
        sapwood.LLM(str(peeled), device="cpu")


def test_its_files_of_gguf(banana: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, keys and tensors there come from the same one file."""
    inner = ggufs._INNER["llama"] | {"mlp.gate_proj": "ffn_skin"}
    monkeypatch.setitem(ggufs._INNER, "banana", inner)
    path = ggufs.write("llama-tied", tmp_path / "model.gguf", architecture="banana", peel="smooth")
    files = open_files(path, name="banana", families=banana.families)
    assert files.config["architectures"] == ["BananaForCausalLM"]
    model = forward.empty(declare(files.config, banana.families))
    load_weights(model, files)
    tokens = [5, 17, 99, 3]
    torch.testing.assert_close(forward.logits(model, tokens), models.logits("llama-tied", tokens), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match=r"general\.architecture = 'banana' is not supported"):
        open_files(path, name="banana")


FAMILY = "from sapwood.arch.family import Family, Gguf\nFAMILY = Family(architecture={!r}, declare=len, gguf={})\n"


@pytest.mark.parametrize(
    ("architecture", "gguf", "name"),
    [
        ("LlamaForCausalLM", "None", "config.json's architecture LlamaForCausalLM"),
        ("Mine", "Gguf(architecture='qwen2', fields=len)", "GGUF's architecture qwen2"),
    ],
)
def test_two_of_one_name(install: Install, architecture: str, gguf: str, name: str) -> None:
    package = f"peach_{architecture.lower()}"  # a module is imported once
    install(package, FAMILY.format(architecture, gguf), families="FAMILY")
    with pytest.raises(ConfigError, match=rf"{name} is brought by Sapwood itself and by {package} 0.1: uninstall one"):
        _ = joined().families


def test_two_packages_of_one_name(install: Install) -> None:
    for package in ("plum", "pear"):
        install(package, FAMILY.format("Mine", "None"), families="FAMILY")
    with pytest.raises(ConfigError, match=r"architecture Mine is brought by pear 0.1 and by plum 0.1"):
        _ = joined().families


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nonesuch_at_all\n", "cannot be imported: ModuleNotFoundError.*nonesuch_at_all"),
        ("raise SystemError('ripe')\n", "cannot be imported: SystemError: ripe"),
        ("", "cannot be imported: AttributeError"),
        ("FAMILY = 3\n", "is no Family"),
        ("FAMILY = [3]\n", "is no Family"),
    ],
)
def test_a_package_that_is_at_fault_is_named(install: Install, code: str, words: str, request: Any) -> None:
    name = f"grape{abs(hash(code))}"  # a module is imported once
    install(name, code, families="FAMILY")
    with pytest.raises(
        ConfigError, match=rf"{name} 0.1 brings {name}:FAMILY \(sapwood.families: FAMILY\), which {words}"
    ):
        _ = joined().families


def test_the_doctor_lists_them(banana: Catalogue, install: Install) -> None:
    install("melon", "raise OSError('seeds')", families="FAMILY")
    install("lemon", "", familes="FAMILY")
    found: dict[str, list[Check]] = {}
    for check in check_all():
        found.setdefault(check.what, []).append(check)
    assert [check.state for check in found["plug-in banana"]] == ["ok"] * 3
    assert [check.found for check in found["plug-in mashed"]] == [
        "sapwood.backends, sapwood_banana_device:BACKEND of sapwood-banana 1.2"
    ]
    broken, unknown = sorted(found["plug-in FAMILY"], key=lambda check: check.mend, reverse=True)
    assert broken.state == unknown.state == "bad"
    assert "melon 0.1" in broken.found and "seeds" in broken.found and broken.mend == "pip uninstall melon"
    assert "lemon 0.1" in unknown.found and "sapwood.families" in unknown.found


FORMAT = "from sapwood.text.parsers import Reasoning\n{} = Reasoning(begin='<a>', end='</a>', aliases={})\n"


@pytest.mark.parametrize(
    ("name", "aliases", "clash"),
    [
        ("Kernel", (), ""),
        ("QWQ", (), "qwq"),  # another engine's name of one of ours
        ("kernel", ("Mistral",), "mistral"),
        ("kernel", ("auto",), "auto"),
        ("none", (), "none"),
    ],
)
def test_names_and_other_names_are_of_one(
    install: Install, request: pytest.FixtureRequest, name: str, aliases: tuple[str, ...], clash: str
) -> None:
    package = f"date{request.node.callspec.indices['name']}"  # a module is imported once
    install(package, FORMAT.format(name, aliases), reasoning_formats=name)
    if clash:
        with pytest.raises(
            ConfigError, match=f"reasoning_formats: {clash} is brought by Sapwood itself and by {package}"
        ):
            _ = joined().formats
    else:
        formats = joined().formats
        for given in (name, name.lower(), name.upper()):
            assert choose("", reasoning=given, formats=formats).reasoning == formats.reasoning[name]


BACKEND = "from sapwood.attention.select import Offer\nBACKEND = Offer({!r}, int, None, print)\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("BACKEND = 3\n", "is no Offer"),
        (BACKEND.format("reference"), "attention backend reference is brought by Sapwood itself"),
    ],
)
def test_the_doctor_looks_at_backends_too(install: Install, code: str, words: str) -> None:
    """Of which no two have one name, of whatever kind they are."""
    package = f"fig{len(code)}"
    install(package, code, backends="BACKEND")
    (found,) = [check for check in check_all() if check.what == "plug-in BACKEND"]
    assert found.state == "bad" and words in found.found and package in found.found


def test_a_server_tells_what_it_does_not_use(install: Install) -> None:
    install("quince", "", familes="FAMILY")
    ((plugin, why),) = joined().unknown
    assert plugin.point.value == "quince:FAMILY" and "sapwood.familes" in why and "sapwood.families" in why
