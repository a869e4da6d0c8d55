"""What makes a dataclass field an option."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *flags: str,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    off: tuple[str, ...] = (),
    derived: bool = True,
    several: bool = False,
) -> Any:
    """A dataclass field that is a command-line option. The first flag is the one that messages use.

    `off` are further spellings that switch a bool off; `--no-x` comes by itself. `derived`: `resolve` has a rule for
    it where it is None. `several`: values separated by commas, or given again and again.
    """
    told: dict[str, Any] = {"help": help, "flags": flags, "choices": choices, "metavar": metavar, "off": off}
    return field(default=default, metadata=told | {"derived": derived, "several": several})


def names_in(given: str | None) -> list[str]:
    """The values of an option that takes several."""
    return [name for one in (given or "").split(",") if (name := one.strip())]
