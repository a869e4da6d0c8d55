"""Ray Serve's interface for request routers, which is alpha: whatever changes there changes here, and nowhere else (Ray 2.60).

It chooses for those who ask engines through a handle of Ray. Requests over HTTP do not come here: the router sends them itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)

from sapwood.fleet.picking import Picking


class ByPrefix(FIFOMixin, RequestRouter):
    """Calls of `ask(path, body, headers)` go where their prompt's beginning is, as far as load allows."""

    def initialize_state(self, policy: str = "cache_aware", **_: Any) -> None:
        """What `RequestRouterConfig.request_router_kwargs` has."""
        self._picking = Picking(policy)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank for each replica, the best one first."""
        if not candidate_replicas:
            return []
        by_name = {str(one.replica_id.unique_id): one for one in candidate_replicas}
        return [[by_name[name]] for name in self._picking.order(list(by_name), *_asked(pending_request))]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """It runs there from now on."""
        request = pending_request.metadata.internal_request_id
        self._picking.sent(str(replica_id.unique_id), request, *_asked(pending_request))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """It was answered, or has failed."""
        self._picking.done(internal_request_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """What was known of it is worth nothing."""
        super().on_replica_actor_died(replica_id)
        self._picking.forget(str(replica_id.unique_id))


def _asked(pending: PendingRequest | None) -> tuple[str, bytes, Mapping[str, str]]:
    """Path, body and headers of a call; of one that is no request nothing."""
    given = () if pending is None else tuple(pending.args)
    if len(given) >= 2 and isinstance(given[0], str) and isinstance(given[1], bytes):
        headers = given[2] if len(given) > 2 and isinstance(given[2], dict) else {}
        return given[0], given[1], headers
    return "", b"", {}
