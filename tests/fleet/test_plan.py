"""What a fleet's table may say, and what comes of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import ConfigError
from sapwood.cli import main
from sapwood.fleet.ingress import queued_by_server
from sapwood.fleet.plan import checked, read

SMOL: dict[str, Any] = {"model": "smollm2-135m", "device": "cpu"}


def test_what_a_server_is_told() -> None:
    plan = checked(
        {
            "engine": {
                "big": {
                    "model": "org/big",
                    "tensor_parallel": 2,
                    "options": {
                        "max-model-len": 4096,
                        "enable-expert-parallel": True,
                        "async": False,
                        "kind": ["a", "b"],
                    },
                    "adapters": {"law": "/adapters/law"},
                }
            }
        },
        "here",
    )
    engine = plan.engine["big"]
    words = engine.command("big", "10.0.0.1")
    assert words[1:5] == ["-m", "sapwood", "serve", "org/big"]
    told = " ".join(words)
    assert "--host 10.0.0.1 --port 0 --served-model-name big" in told and "--tensor-parallel-size 2" in told
    assert "--lora-modules law=/adapters/law" in told
    assert "--max-model-len 4096 --enable-expert-parallel --kind a b" in told and "async" not in told
    assert engine.num_gpus == 2 and engine.bounds == (1, 1) and engine.served("big") == ("big", "law")


def test_every_word_of_a_command_is_an_option_of_serve() -> None:
    """What the fleet itself says is understood by the command that it begins."""
    from sapwood.cli import _parser
    from sapwood.config.flags import given

    engine = checked(
        {"engine": {"m": SMOL | {"tensor_parallel": 2, "adapters": {"a": "/a", "b": "/b"}, "drain_seconds": 7}}}, "here"
    ).engine["m"]
    values = given(_parser(["serve"]).parse_args(engine.command("m", "127.0.0.1")[3:]))
    assert (values["drain_seconds"], values["tensor_parallel_size"], values["port"]) == ("7", "2", "0")
    assert tuple(values["lora_modules"]) == ("a=/a", "b=/b")


def test_the_routers_table() -> None:
    plan = checked(
        {
            "route": {"policy": "session", "model": {"fast": {"to": ["smol", "law"]}}},
            "engine": {"smol": SMOL | {"max_running": 8, "adapters": {"law": "/law"}}, "other": SMOL},
        },
        "here",
    )
    table = plan.table("secret")
    assert table.policy == "session" and table.queue_seconds == 300 and table.model["fast"].to == ("smol", "law")
    smol, other = table.server
    assert smol.models == ("smol", "law") and smol.max_running == 8 and smol.key == "secret" and smol.looked_up
    assert other.models == ("other",) and other.url == "fleet+http://other"
    assert queued_by_server({"law": 2, "smol": 1, "unknown": 5}, plan) == {"smol": 3, "other": 0}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "engine"),
        ({"engine": {}}, "engine"),
        ({"engine": {"a b": SMOL}}, "letters, digits"),
        ({"engine": {"m": SMOL | {"replica": 2}}}, "replica"),
        ({"engine": {"m": SMOL | {"replicas": 2, "max_replicas": 3}}}, "either replicas or min_replicas"),
        ({"engine": {"m": SMOL | {"min_replicas": 3, "max_replicas": 2}}}, "min_replicas (3) is more than"),
        ({"engine": {"m": {"model": "m", "tensor_parallel": 4, "gpus": 2}}}, "4 ranks need as many GPUs"),
        ({"engine": {"m": SMOL | {"accelerator": "H100"}}}, "accelerator is nothing without GPUs"),
        ({"engine": {"m": SMOL | {"options": {"--threads": 1}}}}, "options have no dashes: threads"),
        ({"engine": {"m": SMOL | {"options": {"served_model_name": "x"}}}}, "served_model_name is set by the fleet"),
        ({"engine": {"m": SMOL | {"adapters": {"n": "/n"}}, "n": SMOL}}, "two models or adapters are called 'n'"),
        ({"engine": {"m": SMOL}, "route": {"policy": "best"}}, "there is no policy 'best'"),
        ({"engine": {"m": SMOL}, "route": {"server": []}}, "[route] has no server"),
        ({"engine": {"m": SMOL}, "route": {"api_keys_file": "k"}, "ingress": {"api_key_file": "k"}}, "give either"),
        ({"engine": {"m": SMOL}, "name": "a/b"}, "name is letters"),
        ({"engine": {"m": SMOL}, "name": "a.b"}, "name is letters"),
        ({"engine": {"router": SMOL}}, "a part of every fleet"),
        ({"engine": {"m": SMOL}, "ingress": {"port": 70_000}}, "port"),
    ],
)
def test_what_is_no_fleet(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as found:
        checked(raw, "here")
    assert "here" in str(found.value) and says in str(found.value)


def test_the_command_line_reads_it_without_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[engine.smol]\nmodel = "smollm2-135m"\ndevice = "cpu"\n')
    assert main(["fleet", "up", str(file), "--check"]) == 0
    assert "smol" in capsys.readouterr().out
    file.write_text('[engine.smol]\nmodle = "smollm2-135m"\n')
    assert main(["fleet", "up", str(file), "--check"]) == 2
    assert "modle" in capsys.readouterr().err
    file.write_text('[ingress]\napi_key_file = "nowhere"\n[engine.smol]\nmodel = "m"\ndevice = "cpu"\n')
    assert main(["fleet", "up", str(file), "--check"]) == 2
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize("words", [["up", "FILE"], ["status"], ["drain", "smol"], ["logs", "smol"], ["down"]])
def test_without_ray_it_is_said_what_is_missing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[engine.smol]\nmodel = "smollm2-135m"\ndevice = "cpu"\n')
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sapwood.fleet.rays", raising=False)
    assert main(["fleet", *(str(file) if word == "FILE" else word for word in words)]) == 2
    assert "pip install 'sapwood[ray]'" in capsys.readouterr().err
