"""The only reader of the environment.

SAPWOOD_CACHE     where models and derived files are kept             ~/.cache/sapwood, or under XDG_CACHE_HOME
TRITON_CACHE_DIR  where compiled kernels are kept                    kernels/ in SAPWOOD_CACHE
SAPWOOD_API_KEY   what --api-key says, without showing it in `ps`
SAPWOOD_ADMIN_API_KEY  the same of --admin-api-key
SAPWOOD_DEBUG     1: tracebacks for user errors too
HF_TOKEN          passed to the hub for gated models (read by huggingface_hub itself)
HF_HUB_OFFLINE    1: never ask the hub
KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT  where a cluster's API is, as it tells its containers
NO_COLOR          any value: plain output
PATH, LD_LIBRARY_PATH, TMPDIR, HOME  what processes get that read files nobody vouches for, and nothing else
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_NEEDED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "HOME")
_TRUE = {"1", "true", "yes", "on"}


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where models live. Not created here."""
    if chosen := env.get("SAPWOOD_CACHE"):
        return Path(chosen).expanduser()
    base = env.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sapwood"


def kernel_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where kernels live that were compiled on this machine, for all versions of the package. Not created here."""
    chosen = env.get("TRITON_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else cache_dir(env) / "kernels"


def api_key(env: Mapping[str, str] = os.environ) -> str | None:
    return env.get("SAPWOOD_API_KEY") or None


def admin_api_key(env: Mapping[str, str] = os.environ) -> str | None:
    return env.get("SAPWOOD_ADMIN_API_KEY") or None


def inherited(more: Mapping[str, str], env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a process gets that is begun as this one was, and more."""
    return {**env, **more}


def debug(env: Mapping[str, str] = os.environ) -> bool:
    return _true(env.get("SAPWOOD_DEBUG"))


def offline(env: Mapping[str, str] = os.environ) -> bool:
    return _true(env.get("HF_HUB_OFFLINE"))


def kubernetes(env: Mapping[str, str] = os.environ) -> str | None:
    """The address of the API of the cluster that this runs in, None outside of one."""
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT") or "443"
    if not host:
        return None
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def of_a_child(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a process needs to start at all, without keys or anything else of ours."""
    return {name: env[name] for name in _NEEDED if name in env}


def plain(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the user asked for output without colours."""
    return "NO_COLOR" in env or env.get("TERM") == "dumb"


def _true(text: str | None) -> bool:
    return (text or "").strip().lower() in _TRUE
