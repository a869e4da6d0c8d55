"""Choosing a backend."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sapwood.attention.select import choose, stored
from sapwood.base.errors import ConfigError
from tests import kv

CPU = torch.device("cpu")
GROUP = kv.group(num_layers=1, num_heads=4, num_kv_heads=2, head_dim=64, window=None, page_size=16)


def test_auto_takes_the_fastest_of_the_device() -> None:
    assert choose(GROUP, CPU, torch.float32).name == "cpu"
    pytest.importorskip("triton")
    assert choose(GROUP, torch.device("cuda"), torch.bfloat16).name == "triton"


def test_auto_falls_back() -> None:
    pytest.importorskip("triton")
    odd = kv.group(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64, window=None, page_size=12)
    assert choose(odd, torch.device("cuda"), torch.bfloat16).name == "reference"
    with pytest.raises(ConfigError, match=r"power of two.*12.*Use auto or reference"):
        choose(odd, torch.device("cuda"), torch.bfloat16, "triton")


def test_a_refusal_says_why_and_what_to_use() -> None:
    with pytest.raises(ConfigError, match=r"attention-backend triton cannot be used: .*CUDA.*cpu\. Use auto or cpu\."):
        choose(GROUP, CPU, torch.float32, "triton")
    with pytest.raises(ConfigError, match=r"no backend of that name"):
        choose(GROUP, CPU, torch.float32, "flash")
    assert choose(GROUP, CPU, torch.float32, "reference").name == "reference"


def test_float8_is_refused_where_it_is_not_stored() -> None:
    with pytest.raises(
        ConfigError, match=r"no attention backend .*float8_e4m3fn on cpu.*triton: .*CUDA.*kv-cache-dtype"
    ):
        choose(GROUP, CPU, torch.float8_e4m3fn)
    with pytest.raises(ConfigError, match=r"computed in, not torch.float8_e4m3fn"):
        choose(GROUP, CPU, torch.float8_e4m3fn, "reference")
    assert stored("fp8_e4m3", torch.bfloat16) == torch.float8_e4m3fn
    assert stored("auto", torch.bfloat16) == stored("bfloat16", torch.float32) == torch.bfloat16


def test_triton_is_not_imported_where_it_cannot_run() -> None:
    code = (
        "import sys, torch; from sapwood.attention.select import choose; from sapwood.base.kv import Heads, KVGroup;"
        "choose(KVGroup(Heads(1, 1, 64), 1, 16), torch.device('cpu'), torch.float32);"
        "sys.exit('sapwood.attention.triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
