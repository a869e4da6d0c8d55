"""What bodies say of prompts that one server reads and another answers, as the proxies of other engines say it.

{"kv_transfer_params": {"do_remote_decode": true}}                                read this for somebody else
{"kv_transfer_params": {"do_remote_prefill": true, "remote_host": ..., ...}}      somebody has: what the first one's answer said
{"bootstrap_host": ..., "bootstrap_port": ..., "bootstrap_room": ...}             both at once, by the same number
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sapwood.base.errors import RequestError
from sapwood.base.handoff import Door, Fetch, Handoff, Offer
from sapwood.config.handoff import trusted
from sapwood.config.stores import StoreConfig
from sapwood.server.errors import unsupported

HEADER = b"x-sapwood-kv-transfer"
"""What an answer says in `kv_transfer_params`, where bodies have no place for it."""

FIELDS = ("kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room")
_BOOTSTRAP_PORT = 8998  # SGLang's own, where a body does not say
_MARKS = (b'"kv_transfer_params"', b'"bootstrap_')

Port = Annotated[int, Meta(ge=1, le=65535)]


class TransferParams(msgspec.Struct):
    """vLLM's names. `remote_request_id` is the ticket; blocks are found by what is in them, so `remote_block_ids` are not looked at."""

    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_engine_id: str | None = None
    remote_block_ids: Any = None
    remote_host: str | None = None
    remote_port: Port | None = None
    remote_request_id: str | None = None


class _Body(msgspec.Struct):
    kv_transfer_params: TransferParams | None = None
    bootstrap_host: str | None = None
    bootstrap_port: Port | None = None
    bootstrap_room: Annotated[int, Meta(ge=0)] | None = None


_decoder = msgspec.json.Decoder(_Body)


class Handing:
    """Reads bodies of a server whose engine has a `door`; it is another one when there is another engine."""

    def __init__(self, door: Callable[[], Door | None], options: StoreConfig) -> None:
        self._engines, self._options = door, options

    @property
    def _door(self) -> Door:
        door = self._engines()
        assert door is not None, "its role stays"
        return door

    def read(self, raw: bytes) -> Handoff | None:
        """What a body says. Raises RequestError naming the field, and msgspec.ValidationError for a value of a wrong type."""
        if not any(mark in raw for mark in _MARKS):
            return None
        body = _decoder.decode(raw)
        if body.kv_transfer_params is not None:
            return self._named(body.kv_transfer_params)
        return None if body.bootstrap_room is None else self._room(body)

    def told(self, offer: Offer) -> dict[str, Any]:
        """What the one who goes on has to know, as `kv_transfer_params` of its request."""
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self._door.engine_id,
            "remote_block_ids": None,
            "remote_host": self._door.host,
            "remote_port": self._door.port,
            "remote_request_id": offer.ticket,
        }

    def _named(self, given: TransferParams) -> Handoff | None:
        name = "kv_transfer_params"
        if given.do_remote_decode and given.do_remote_prefill:
            raise RequestError(
                f"{name}: a prompt is read for somebody else, or has been: do_remote_decode and do_remote_prefill exclude each other.",
                param=name,
            )
        if given.do_remote_decode:
            self._check(self._door.offers, f"{name}.do_remote_decode", "prefill")
            return Offer(given.remote_request_id or uuid.uuid4().hex)
        if not given.do_remote_prefill:
            return None
        self._check(self._door.fetches, f"{name}.do_remote_prefill", "decode")
        for field in ("remote_host", "remote_port", "remote_request_id"):
            if getattr(given, field) is None:
                param = f"{name}.{field}"
                raise RequestError(
                    f"{param} is missing: send what the server that read the prompt has said.", param=param
                )
        assert given.remote_host and given.remote_port and given.remote_request_id is not None
        return self._fetch(given.remote_request_id, given.remote_host, given.remote_port, f"{name}.remote_host")

    def _room(self, body: _Body) -> Handoff:
        ticket = f"room-{body.bootstrap_room}"
        if self._door.role == "both":
            raise unsupported(
                "bootstrap_room", "it goes to servers with --role prefill and --role decode; send kv_transfer_params"
            )
        if self._door.offers:
            return Offer(ticket)
        if body.bootstrap_host is None:
            raise RequestError("bootstrap_host is missing: whom is the prompt to be had from?", param="bootstrap_host")
        port = body.bootstrap_port or _BOOTSTRAP_PORT
        return self._fetch(ticket, body.bootstrap_host, port, "bootstrap_host", early=True)

    def _fetch(self, ticket: str, host: str, port: int, param: str, *, early: bool = False) -> Fetch:
        if not trusted(self._options, host, port):
            raise RequestError(
                f"{param}: prompts are not taken from {host}:{port}. Start the server with --transfer-peer {host} if they should be.",
                param=param,
            )
        return Fetch(ticket, host, port, early)

    @staticmethod
    def _check(can: bool, param: str, role: str) -> None:
        if not can:
            raise RequestError(
                f"{param}: this server does not do that. Start it with --role {role} or both.", param=param
            )
