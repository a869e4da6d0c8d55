"""What can be chosen by name: Sapwood's own, and what other packages bring by entry points. That is the whole plug-in system.

    [project.entry-points."sapwood.families"]
    banana = "sapwood_banana:FAMILY"

A `Catalogue` is made once, where a program begins, and passed down. Nothing is imported before its kind is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, distributions
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sapwood.base.errors import ConfigError

if TYPE_CHECKING:
    from sapwood.arch.family import Family
    from sapwood.quant.methods import ReadSection
    from sapwood.text.parsers import Formats
    from sapwood.text.parsers.choose import Format

T = TypeVar("T")

_PREFIX = "sapwood."
FAMILIES, TOOLS, REASONING, BACKENDS, METHODS = "families", "tool_formats", "reasoning_formats", "backends", "methods"
KINDS: Mapping[str, str] = {
    FAMILIES: "a `sapwood.arch.family.Family`, or several",
    TOOLS: "a `sapwood.text.parsers.ToolFormat`, under the entry point's name",
    REASONING: "a `sapwood.text.parsers.Reasoning`, under the entry point's name",
    BACKENDS: "an `sapwood.attention.select.Offer`, or several",
    METHODS: "a function from a `quantization_config` to the method of each Linear, under its `quant_method`",
}
"""What packages may bring, by the entry points' group without "sapwood."."""


@dataclass(frozen=True)
class Plugin:
    """An entry point of another package. `package` is its name and version."""

    kind: str
    name: str
    package: str
    point: EntryPoint

    def load(self) -> Any:
        """What it brings. Raises ConfigError, which names the package, whatever is wrong with it."""
        try:
            return self.point.load()
        except Exception as error:
            raise self.wrong(f"cannot be imported: {type(error).__name__}: {error}") from error

    def wrong(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self.package} brings {self.point.value} ({_PREFIX}{self.kind}: {self.name}), which {what}. "
            "Mend the package, or uninstall it."
        )


def _just_its_key(key: str, one: object) -> Iterable[str]:
    return (key,)


def _in_any_case(key: str, format: Format) -> Iterable[str]:
    return {name.lower() for name in (key, *format.aliases)}


@dataclass(frozen=True)
class Catalogue:
    """Sapwood's own choices and those of `plugins`. Asking for a kind raises ConfigError if one of them is at fault."""

    plugins: tuple[Plugin, ...] = ()

    @cached_property
    def families(self) -> tuple[Family, ...]:
        from sapwood.arch.families import FAMILIES as OWN
        from sapwood.arch.family import Family

        names: dict[str, Callable[[Family], str | None]] = {
            "config.json's architecture": lambda family: family.architecture,
            "GGUF's architecture": lambda family: family.gguf.architecture if family.gguf else None,
        }
        return self.join(FAMILIES, OWN, Family, names)

    @cached_property
    def formats(self) -> Formats:
        """How models write calls of tools and thoughts. Those of plug-ins are tried first where a template is to show one."""
        from sapwood.text.parsers import FORMATS, RESERVED, Formats, Reasoning, ToolFormat

        return Formats(
            self._named(TOOLS, FORMATS.tools, ToolFormat, _in_any_case, reserved=RESERVED),
            self._named(REASONING, FORMATS.reasoning, Reasoning, _in_any_case, reserved=RESERVED),
        )

    def join(
        self, kind: str, own: Sequence[T], type: type[T], names: Mapping[str, Callable[[T], str | None]]
    ) -> tuple[T, ...]:
        """Sapwood's own things of a kind, and behind them those that are brought. `names` are those by which one is found, and
        which no two may have, each with what it is called."""
        found = list(_owned(own))
        for plugin in self._of(kind):
            brought = plugin.load()
            several = (brought,) if isinstance(brought, type) or not isinstance(brought, Sequence) else brought
            found += [(_checked(plugin, one, type), plugin.package) for one in several]
        for what, name_of in names.items():
            _no_clash(found, name_of, what)
        return tuple(one for one, _ in found)

    @property
    def unknown(self) -> Iterator[tuple[Plugin, str]]:
        """What is brought under a group that nobody asks for, a misspelt one perhaps; what to tell of it."""
        known = ", ".join(_PREFIX + kind for kind in KINDS)
        for plugin in self.plugins:
            if plugin.kind not in KINDS:
                yield plugin, f"{plugin.package} names it in {_PREFIX}{plugin.kind}, and there are: {known}"

    @cached_property
    def methods(self) -> Mapping[str, ReadSection]:
        """Ways to store weights, by the names that checkpoints give them: see `sapwood.quant.methods`."""
        from sapwood.quant.methods import METHODS as OWN

        return self._named(METHODS, OWN, cast(Any, Callable))

    def check(self) -> None:
        """Ask for every kind that the host uses; those of devices are asked for by whoever computes."""
        _ = self.families, self.formats, self.methods

    def _named(
        self,
        kind: str,
        own: Mapping[str, T],
        type: type[T],
        names_of: Callable[[str, T], Iterable[str]] = _just_its_key,
        *,
        reserved: Sequence[str] = (),
    ) -> Mapping[str, T]:
        """By their keys. `names_of` one are all by which it is found; no two have the same, and none a `reserved` one."""
        found = [(plugin.name, plugin.package, _checked(plugin, plugin.load(), type)) for plugin in self._of(kind)]
        names = [*_owned(reserved), *_owned(name for key, one in own.items() for name in names_of(key, one))]
        names += [(name, package) for key, package, one in found for name in names_of(key, one)]
        _no_clash(names, lambda name: name, f"{_PREFIX}{kind}:")
        return {name: one for name, _, one in found} | dict(own)

    def _of(self, kind: str) -> Iterator[Plugin]:
        return (plugin for plugin in self.plugins if plugin.kind == kind)


def joined() -> Catalogue:
    """With what every package brings that is installed here. Reads their metadata: some milliseconds, so once a process."""
    return Catalogue(tuple(sorted(_plugins(), key=lambda plugin: (plugin.kind, plugin.package, plugin.name))))


def _plugins() -> Iterator[Plugin]:
    # Not `entry_points`, which takes every package's apart: few have any of ours.
    seen = set()
    for package in distributions():
        text = package.read_text("entry_points.txt")
        if text is None or f"[{_PREFIX}" not in text or package.name in seen:
            continue
        seen.add(package.name)  # one that is found twice is imported from where it is found first
        for point in package.entry_points:
            if point.group.startswith(_PREFIX):
                yield Plugin(point.group.removeprefix(_PREFIX), point.name, f"{package.name} {package.version}", point)


def _owned(own: Iterable[T]) -> Iterator[tuple[T, str]]:
    return ((one, "Sapwood itself") for one in own)


def _checked(plugin: Plugin, brought: Any, type: type[T]) -> T:
    if not isinstance(brought, type):
        raise plugin.wrong(f"is no {type.__name__}")
    return brought


def _no_clash(found: Iterable[tuple[T, str]], name_of: Callable[[T], str | None], what: str) -> None:
    """Raises ConfigError, naming both packages, if two have the same name; which one is meant nobody can say."""
    owners: dict[str, str] = {}
    for one, package in found:
        if (name := name_of(one)) is None:
            continue
        if name in owners:
            raise ConfigError(f"{what} {name} is brought by {owners[name]} and by {package}: uninstall one of them.")
        owners[name] = package
