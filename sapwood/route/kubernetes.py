"""Where the servers of a service of Kubernetes are: `k8s+http://SERVICE.NAMESPACE:PORT` is all ready endpoints of its EndpointSlices.

They are read from the cluster's API with the service account of the router's own pod, which has to be allowed to list them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from sapwood.base.errors import ConfigError
from sapwood.route.discovery import Found, found, way_of
from sapwood.route.table import Server

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class _Port(msgspec.Struct):
    port: int | None = None
    name: str | None = None


class _Conditions(msgspec.Struct, frozen=True):
    """What is not said counts as ready."""

    ready: bool | None = None


class _Endpoint(msgspec.Struct):
    addresses: list[str] = []
    conditions: _Conditions = _Conditions()


class _Slice(msgspec.Struct, rename="camel"):
    address_type: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _Slices(msgspec.Struct):
    items: list[_Slice] = []


class _Status(msgspec.Struct):
    message: str = ""


class Kubernetes:
    """A finder that asks the API at `api`, None outside of a cluster. `account` holds the token, which changes, the name space of the
    pod, and the certificate of who signs the API's."""

    def __init__(self, session: aiohttp.ClientSession, api: str | None, account: Path = ACCOUNT) -> None:
        self._session, self._api, self._account = session, api, account

    async def __call__(self, server: Server) -> Found:
        """Raises OSError, ConfigError."""
        if self._api is None:
            raise ConfigError(
                f"{server.url} is for a pod of Kubernetes, which this is not: name addresses, or dns+http."
            )
        _, parts = way_of(server)
        service, _, space = (parts.hostname or "").partition(".")
        space = space.partition(".")[0] or (self._account / "namespace").read_text().strip()
        slices = (await self._slices(service, space)).items
        known = [one for one in slices if one.address_type in ("IPv4", "IPv6")]
        addresses = sorted(set(_addresses(known)))
        port = _port(known, parts.port, server.shown) if addresses else 0
        return found(parts, addresses, port, parts.netloc.rpartition("@")[2])

    async def _slices(self, service: str, space: str) -> _Slices:
        label = quote(f"kubernetes.io/service-name={service}", safe="")
        url = f"{self._api}/apis/discovery.k8s.io/v1/namespaces/{quote(space)}/endpointslices?labelSelector={label}"
        token = (self._account / "token").read_text().strip()
        headers = {"authorization": f"Bearer {token}", "accept": "application/json", "accept-encoding": "identity"}
        trusted = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        try:
            async with self._session.get(
                URL(url, encoded=True), headers=headers, ssl=trusted, timeout=_TIMEOUT
            ) as response:
                said = await response.read()
            if response.status == 200:
                return msgspec.json.decode(said, type=_Slices)
            why = msgspec.json.decode(said, type=_Status).message
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            raise OSError(f"the API of Kubernetes does not say: {type(error).__name__}: {error}") from error
        raise OSError(f"the API of Kubernetes says {response.status}: {why}")


def _addresses(slices: list[_Slice]) -> Iterator[str]:
    """Of those that are ready, which those that are about to end are not. All addresses of one are the same to the API, so the first is taken."""
    for one in slices:
        for endpoint in one.endpoints or ():
            if endpoint.conditions.ready is not False and endpoint.addresses:
                yield endpoint.addresses[0]


def _port(slices: list[_Slice], wanted: int | None, shown: str) -> int:
    """That of the containers. Raises OSError if it is not there, or not to be told which."""
    there = {one.port: one.name or "" for each in slices for one in each.ports or () if one.port is not None}
    if wanted is not None and wanted in there:
        return wanted
    if wanted is None and len(there) == 1:
        return next(iter(there))
    names = ", ".join(f"{port} ({name})" if name else str(port) for port, name in sorted(there.items())) or "none"
    raise OSError(f"{shown} needs the port of its containers; there are: {names}")
