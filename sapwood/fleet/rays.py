"""A fleet on Ray Serve: what is deployed, and what is asked of it. Ray is imported nowhere else, but for `ray_router.py`."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.serve import RunTarget
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingContext,
    AutoscalingPolicy,
    ProxyLocation,
    RequestRouterConfig,
)
from ray.serve.exceptions import RayServeException

from sapwood.base.errors import SapwoodError, UserError
from sapwood.fleet.engines import EngineReplica
from sapwood.fleet.ingress import IngressReplica
from sapwood.fleet.plan import Engine, Plan
from sapwood.fleet.register import Register
from sapwood.fleet.scaling import Load, needed

TESTED = "2.60"
"""The minor version of Ray whose interfaces these are."""

_INGRESS, _REGISTER = "router", "register"
_PUSH_SECONDS = "2"  # between two reports of a server's load; Ray's own default is ten
_LOOK_BACK = 12.0  # seconds that loads are averaged over
_ANSWER_SECONDS = 30.0
_STOP_SECONDS = 25.0  # that a server has to end beside those of its answers

log = logging.getLogger(__name__)


class FleetFailed(SapwoodError):
    """Ray could not do what was asked."""


# -- what is deployed -------------------------------------------------------------------------------------------------


class RegisterDeployment:
    """The register; its methods run one after the other."""

    def __init__(self) -> None:
        self._register = Register()

    async def tell(self, *given: Any) -> dict[str, Any]:
        return self._register.tell(*given)

    async def leave(self, *given: Any) -> None:
        self._register.leave(*given)

    async def drain(self, name: str) -> list[str]:
        return self._register.drain(name)

    async def wants(self, *given: Any) -> dict[str, list[str]]:
        return self._register.wants(*given)

    async def state(self) -> dict[str, Any]:
        return self._register.state()

    async def logs(self, name: str, last: int) -> dict[str, list[str]]:
        return self._register.logs(name, last)


class EngineDeployment(EngineReplica):
    """A server, where Ray has put it."""

    async def __init__(self, fleet: str, model: str, engine: Engine, key: str) -> None:  # type: ignore[misc]  # Ray Serve waits for it
        register = serve.get_deployment_handle(_REGISTER, app_name=fleet)
        super().__init__(model, engine, key, register, _replica(), ray.util.get_node_ip_address())
        await self.begin()

    async def __del__(self) -> None:  # Ray Serve calls it, and waits for it, when a replica is to end
        await self.stop()


class IngressDeployment(IngressReplica):
    """A router, where Ray has put it."""

    async def __init__(self, plan: Plan, key: str, register: Any) -> None:  # type: ignore[misc]
        super().__init__(plan, key, register, _Engines(plan.name), _replica(), ray.util.get_node_ip_address())
        await self.begin()

    async def __del__(self) -> None:  # Ray Serve calls it, and waits for it, when a replica is to end
        await self.stop()


class _Engines(dict[str, Any]):
    """Handles of engines by their models, made when they are wanted."""

    def __init__(self, fleet: str) -> None:
        super().__init__()
        self._fleet = fleet

    def __missing__(self, model: str) -> Any:
        handle = self[model] = serve.get_deployment_handle(model, app_name=_part(self._fleet, model))
        return handle


class Needed:
    """Ray Serve's autoscaling policy: as many servers as queue and tokens need. Bounds and delays are Ray's, and so is the first server where
    there is none."""

    def __init__(self, target_requests: float, target_tokens: float | None) -> None:
        self._requests, self._tokens = target_requests, target_tokens

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        told = context.aggregated_metrics or {}
        replicas = {replica for values in told.values() for replica in values}
        loads = [Load(*(told.get(name, {}).get(one, 0.0) for name in Load._fields)) for one in replicas]
        calls = ceil(context.total_num_requests / self._requests)  # those of handles
        return max(needed(loads, self._requests, self._tokens), calls), {}


def _replica() -> str:
    return str(serve.get_replica_context().replica_tag)


def router(plan: Plan, key: str) -> Any:
    """The router and its register, as an application of Ray Serve."""
    register = serve.deployment(
        RegisterDeployment, name=_REGISTER, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0}
    ).bind()
    ingress = plan.ingress
    where: dict[str, Any] = {"max_replicas_per_node": 1} if ingress.replicas > 1 else {}
    on_head = {"resources": {"node:__internal_head__": 0.001}} if ingress.replicas == 1 else {}
    made = serve.deployment(
        IngressDeployment,
        name=_INGRESS,
        num_replicas=ingress.replicas,
        ray_actor_options={"num_cpus": ingress.cpus, **on_head},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=60,
        **where,
    )
    return made.bind(plan, key, register)


def engines(plan: Plan, model: str, key: str) -> Any:
    """The servers of a model, as another one, so that they stay when others change."""
    engine = plan.engine[model]
    return serve.deployment(EngineDeployment, **settings(model, engine)).bind(plan.name, model, engine, key)


def _part(fleet: str, model: str) -> str:
    """What the application of a model's servers is called."""
    return f"{fleet}.{model}"


def settings(name: str, engine: Engine) -> dict[str, Any]:
    """How Ray Serve is to deploy the servers of a model."""
    least, most = engine.bounds
    actor: dict[str, Any] = {
        "num_cpus": engine.cpus,
        "num_gpus": engine.num_gpus,
        "runtime_env": {"env_vars": {"RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": _PUSH_SECONDS}},
    }
    if engine.accelerator is not None:
        actor["accelerator_type"] = engine.accelerator
    found: dict[str, Any] = {
        "name": name,
        "ray_actor_options": actor,
        "max_ongoing_requests": 10_000,  # what is too much, servers say themselves
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": engine.drain_seconds + _STOP_SECONDS,
        "max_constructor_retry_count": 3,
        "request_router_config": RequestRouterConfig(request_router_class="sapwood.fleet.ray_router:ByPrefix"),
    }
    if engine.tensor_parallel > 1 and engine.num_gpus:  # all ranks on one machine
        found["placement_group_bundles"] = [{"CPU": engine.cpus, "GPU": engine.num_gpus}]
        found["placement_group_strategy"] = "STRICT_PACK"
    if least == most:
        return found | {"num_replicas": least}
    policy = AutoscalingPolicy(
        policy_function="sapwood.fleet.rays:Needed",
        policy_kwargs={"target_requests": engine.target_requests, "target_tokens": engine.target_tokens},
    )
    found["autoscaling_config"] = AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        target_ongoing_requests=engine.target_requests,
        upscale_delay_s=engine.up_seconds,
        downscale_delay_s=engine.down_seconds,
        downscale_to_zero_delay_s=engine.zero_seconds,
        look_back_period_s=_LOOK_BACK,
        policy=policy,
    )
    return found


# -- what is asked of it ----------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What is known of a fleet: the state of all and of each of its parts as Ray has it, and the register's (`Register.state`)."""

    status: str
    message: str
    parts: Mapping[str, tuple[str, int, str]]
    register: Mapping[str, Any]


def connect(plan: Plan | None, address: str | None, *, begin: bool) -> bool:
    """Whether a cluster had to be begun, which then lasts for as long as this process. Raises UserError where there is none and none is
    to begin."""
    if not ray.__version__.startswith(f"{TESTED}."):
        log.warning("Ray %s is not the version that this was made for, %s", ray.__version__, TESTED)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    wanted = address or (plan.address if plan is not None else None) or "auto"
    environment = plan.runtime_env if plan is not None else {}
    more: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning", "runtime_env": environment or None}
    try:
        ray.init(address=wanted, **more)
        return False
    except ConnectionError as error:
        if wanted != "auto":
            raise UserError(f"No Ray cluster answers at {wanted}: {error}") from error
        if not begin:
            raise UserError("There is no Ray cluster here: `sapwood fleet up` begins one.") from error
    ray.init(address="local", include_dashboard=False, **more)
    return True


def up(plan: Plan) -> str:
    """Have the fleet be as the plan says, and return its URL when all of it is there. Servers of which nothing has changed stay. Raises
    FleetFailed."""
    serve.start(proxy_location=ProxyLocation.Disabled)
    there = serve.status().applications
    before = _before(plan.name)
    old, key = before if before is not None else (None, secrets.token_urlsafe(24))
    changed = [
        model
        for model, engine in plan.engine.items()
        if old is None or old.engine.get(model) != engine or not _well(there.get(_part(plan.name, model)))
    ]
    try:
        if old != plan or not _well(there.get(plan.name)):
            serve.run(router(plan, key), name=plan.name, route_prefix=None)
        if changed:
            serve.run_many([RunTarget(engines(plan, model, key), _part(plan.name, model), None) for model in changed])
    except RuntimeError as error:
        raise FleetFailed(f"{error}\n{_why(plan.name)}".rstrip()) from error
    wanted = {plan.name, *(_part(plan.name, model) for model in plan.engine)}
    for name in _parts(plan.name).keys() - wanted:
        serve.delete(name)
    return str(_of(plan.name, _INGRESS).where.remote().result(timeout_s=_ANSWER_SECONDS))


def told(name: str) -> Told:
    """Raises UserError where there is no such fleet."""
    applications = _parts(name)
    if name not in applications:
        names = [one for one in serve.status().applications if "." not in one]
        raise UserError(f"No fleet is called {name!r}; there are: {', '.join(names) or 'none'}.")
    parts = {
        part: (
            one.status.value,
            sum(count for state, count in one.replica_states.items() if state == "RUNNING"),
            one.message,
        )
        for application in applications.values()
        for part, one in application.deployments.items()
    }
    states = [one.status.value for one in applications.values()]
    status = next((state for state in states if state != "RUNNING"), "RUNNING")
    message = " ".join(one.message for one in applications.values() if one.message)
    try:
        register = _of(name, _REGISTER).state.remote().result(timeout_s=_ANSWER_SECONDS)
    except (RayServeException, TimeoutError, ray.exceptions.RayError):
        register = {"servers": [], "routers": [], "queued": {}}
    return Told(status, message, parts, register)


def drain(name: str, whom: str) -> list[str]:
    """Have a server, or all of a model, get nothing new; others take their place. Raises UserError where there is nobody of that name."""
    told(name)
    found = list(_of(name, _REGISTER).drain.remote(whom).result(timeout_s=_ANSWER_SECONDS))
    if not found:
        raise UserError(f"There is no server {whom!r}, and none of such a model, that could be drained.")
    return found


def logs(name: str, whom: str, last: int) -> dict[str, list[str]]:
    """The last lines of a server, or of all of a model. Raises UserError where there is nobody of that name."""
    told(name)
    found: dict[str, list[str]] = _of(name, _REGISTER).logs.remote(whom, last).result(timeout_s=_ANSWER_SECONDS)
    if not found:
        raise UserError(f"There is no server {whom!r}, and none of such a model.")
    return found


def down(name: str) -> None:
    """End a fleet. Raises UserError where there is none of that name."""
    told(name)
    for part in _parts(name):
        serve.delete(part)
    if not serve.status().applications:
        serve.shutdown()


def _of(name: str, part: str) -> Any:
    return serve.get_deployment_handle(part, app_name=name)


def _parts(fleet: str) -> dict[str, Any]:
    """The applications of a fleet: the router's, and one for each model."""
    return {
        name: one
        for name, one in serve.status().applications.items()
        if name == fleet or name.startswith(_part(fleet, ""))
    }


def _well(application: Any) -> bool:
    return application is not None and application.status.value == "RUNNING"


def _before(name: str) -> tuple[Plan, str] | None:
    """The plan of a fleet that is there, and what its servers want to be asked with."""
    if name not in serve.status().applications:
        return None
    try:
        plan, key = _of(name, _INGRESS).before.remote().result(timeout_s=_ANSWER_SECONDS)
        return plan, str(key)
    except (RayServeException, TimeoutError, ray.exceptions.RayError):
        return None


def _why(name: str) -> str:
    deployments = [one for application in _parts(name).values() for one in application.deployments.values()]
    return "\n".join(one.message for one in deployments if one.message)
