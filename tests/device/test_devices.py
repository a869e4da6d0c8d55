"""What devices are found to be, and that what they can follows from what they really are."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sapwood.base.abilities import Ability
from sapwood.base.errors import ConfigError
from sapwood.config.devices import RULES
from sapwood.device import abilities_of, cpu, cuda, find, probe


def test_the_cpu_as_it_is() -> None:
    facts = probe("cpu")
    assert facts.kind == "cpu"
    assert facts.capability is None
    assert 1 <= facts.num_cores <= (os.cpu_count() or 1)
    assert 0 < facts.free_memory <= facts.total_memory
    assert facts.name
    assert "float32" in facts.dtypes
    assert (facts.option, facts.rules) == ("cpu", RULES["cpu"])
    assert facts.abilities == abilities_of(torch.device("cpu")) == {Ability.HOST}


def test_a_core_counts_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for core, siblings in enumerate(["0,4", "1,5", "2,6", "3,7", "0,4", "1,5"]):
        (tmp_path / f"cpu{core}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(cpu, "_CPUS", tmp_path)
    monkeypatch.setattr(cpu, "_CGROUP", tmp_path)
    for allowed, count in (({0, 1, 4, 5}, 2), ({0, 2, 4}, 2), ({8, 9}, 2)):  # of the last two nothing is known
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, allowed=allowed: allowed)
        assert probe("cpu").num_cores == count
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert probe("cpu").num_cores == 1


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_the_users_error(device: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        probe(device)


@pytest.mark.gpu
def test_a_gpu_as_it_is() -> None:
    facts = probe("auto")
    assert facts.kind == "cuda"
    assert facts.capability is not None
    assert 0 < facts.free_memory <= facts.total_memory
    assert facts.option == "cuda:0"
    assert {Ability.PINNED, Ability.TRITON, Ability.GRAPHS} <= facts.abilities
    assert facts.abilities == abilities_of(torch.device("cuda", 0))


def test_on_a_cpu_everything_is_done_at_once() -> None:
    device = find("cpu")
    bits = torch.zeros(2)
    assert device.mark() is None and device.aside(bits) is bits
    total, others = device.memory()
    assert 0 < others < total
    assert device.taken(lambda: None) >= 0


@pytest.mark.parametrize(
    ("capability", "missing"),
    [
        ((7, 5), {Ability.FP8, Ability.EARLY_LAUNCH, Ability.TMA, Ability.CUDNN}),
        ((8, 6), {Ability.FP8, Ability.EARLY_LAUNCH, Ability.TMA, Ability.CUDNN}),
        ((8, 9), {Ability.EARLY_LAUNCH, Ability.TMA, Ability.CUDNN}),
        ((9, 0), set()),
        ((12, 0), set()),
    ],
)
def test_what_devices_of_nvidia_can(capability: tuple[int, int], missing: set[Ability]) -> None:
    assert set(Ability) - cuda.since(capability) == missing | {Ability.HOST}


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch for ROCm as it shows itself: "cuda" is there, and its capability is (9, 4)."""
    properties = SimpleNamespace(name="AMD Instinct MI300X", major=9, minor=4)
    monkeypatch.setattr(torch.version, "hip", "6.4.43482")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place=None: (9, 4))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place=None: properties)


@pytest.mark.usefixtures("amd")
def test_a_device_of_amd_is_not_taken_for_a_hopper() -> None:
    for option in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=rf"--device {option}: AMD Instinct MI300X .*NVIDIA.*ROCm.*--device cpu"):
            find(option)
    assert probe("auto").kind == "cpu"
    assert cuda.abilities(torch.device("cuda", 0)) == {Ability.PINNED}
