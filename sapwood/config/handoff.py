"""Prompts that one engine reads and another answers: the options, and what they mean."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sapwood.base.errors import ConfigError
from sapwood.config.option import names_in, option

ROLES = ("prefill", "decode", "both")


@dataclass(frozen=True, kw_only=True)
class HandoffConfig:
    """Prefill and decode apart."""

    role: str | None = option(
        None,
        "reads prompts for other servers to answer (prefill), answers those that others have read (decode), or both",
        "--role",
        "--disaggregation-mode",
        choices=ROLES,
        derived=False,
    )
    transfer_host: str = option(
        "127.0.0.1",
        "where a server with --role prefill hands prompts over, as others reach it; for servers of the fleet alone",
        "--transfer-host",
        metavar="HOST",
    )
    transfer_port: int = option(
        0, "the port there; 0 is any that is free", "--transfer-port", "--disaggregation-bootstrap-port"
    )
    transfer_peer: str | None = option(
        None,
        "from whom a server with --role decode takes prompts, beside those on its own host; may be given several times",
        "--transfer-peer",
        metavar="HOST[:PORT]",
        derived=False,
        several=True,
    )
    transfer_memory: int = option(
        1 << 30,
        "host memory for prompts that were read and not fetched yet (suffixes K, M, G)",
        "--transfer-memory",
        metavar="BYTES",
    )
    transfer_seconds: float = option(
        30.0, "how long they are kept for, and how long one is waited for of which nothing comes", "--transfer-seconds"
    )


def check(options: HandoffConfig, *, engines: int, ranks: int) -> None:
    """Raise ConfigError for a role that this engine cannot have, and for places that are none."""
    for peer in names_in(options.transfer_peer):
        _peer(peer)
    if options.transfer_memory < 1:
        raise ConfigError(f"--transfer-memory must be more than 0, got {options.transfer_memory}.")
    if not options.transfer_seconds > 0:
        raise ConfigError(f"--transfer-seconds must be more than 0, got {options.transfer_seconds}.")
    if not 0 <= options.transfer_port <= 65535:
        raise ConfigError(f"--transfer-port must be 0 to 65535, got {options.transfer_port}.")
    if options.role is None:
        return
    if ranks > 1:
        raise ConfigError(
            "--role does not go with several ranks (--tensor-parallel-size, --pipeline-parallel-size) yet: leave out one of the two."
        )
    if engines > 1:
        raise ConfigError(
            "--role is of one engine, which is asked by its own port, and --data-parallel-size asks for several. Begin each as a server of "
            "its own."
        )


def trusted(options: HandoffConfig, host: str, port: int) -> bool:
    """Whether prompts may be fetched from there."""
    if _local(host):
        return True
    return any(peer == "*" or _peer(peer) in ((host, None), (host, port)) for peer in names_in(options.transfer_peer))


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _peer(text: str) -> tuple[str, int | None]:
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port or (":" in host.strip("[]") and not text.startswith("[")):
        host, port = text, ""
    if not host or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise ConfigError(f"--transfer-peer takes HOST or HOST:PORT, got {text!r}.")
    return host.strip("[]"), int(port) if port else None
