"""The options as a command line, a file, or keyword arguments: one list, made from the dataclasses.

Every spelling ends in the same place: `from_options` takes pairs of name and value, refuses names that it does not
know, and makes the Config. A name is a field's (`max_model_len`) or any of its flags' (`context_length`).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sapwood.base.errors import ConfigError
from sapwood.config import env
from sapwood.config.numbers import parse_bytes, parse_number
from sapwood.config.option import names_in
from sapwood.config.options import Config

_COUNTS = {"": 1, "k": 1000, "m": 1_000_000, "K": 1 << 10, "M": 1 << 20}
_DEST = "option_"


@dataclass(frozen=True)
class Option:
    """One field of one section, as a person may spell it."""

    section: str
    field: str
    kind: type
    default: Any
    help: str
    flags: tuple[str, ...]
    choices: tuple[str, ...]
    metavar: str
    off: tuple[str, ...]
    derived: bool
    several: bool

    @property
    def names(self) -> tuple[str, ...]:
        """What the option is called in files and keyword arguments."""
        return tuple(dict.fromkeys((self.field, *(_name(flag) for flag in self.flags))))

    def read(self, value: Any) -> Any:
        """Text or a plain value to the field's type; ConfigError if it is neither."""
        try:
            read = self._parse(value) if isinstance(value, str) else self._accept(value)
            if isinstance(read, float) and not math.isfinite(read):
                raise ValueError(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{self.flags[0]} takes {self._takes()}, got {value!r}.") from None
        found = set(names_in(read) if self.several else [read])
        if self.choices and read is not None and not found <= {*self.choices}:
            raise ConfigError(f"{self.flags[0]} takes one of {', '.join(self.choices)}, got {value!r}.")
        return read

    def _parse(self, text: str) -> Any:
        if self.kind is bool:
            return _parse_bool(text)
        if self.kind is tuple:
            return self._accept([text])
        if self.metavar == "BYTES":
            return parse_bytes(text)
        if self.metavar == "TOKENS":
            return parse_number(text, _COUNTS)
        return self.kind(text)

    def _accept(self, value: Any) -> Any:
        if self.several and isinstance(value, list) and all(isinstance(one, str) for one in value):
            return ",".join(value)
        if value is None and self.default is None:
            return None
        if self.kind is tuple:
            if (
                not isinstance(value, list | tuple)
                or not value
                or not all(one and isinstance(one, str) for one in value)
            ):
                raise ValueError
            return tuple(value)
        good = isinstance(value, self.kind) or (self.kind is float and isinstance(value, int))
        if not good or (isinstance(value, bool) and self.kind is not bool):
            raise ValueError
        return self.kind(value)

    def _takes(self) -> str:
        if self.metavar == "BYTES":
            return "bytes, such as 512M or 4G"
        if self.metavar == "TOKENS":
            return "a number of tokens, such as 4096, 4K or 32k"
        kinds = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "text",
            tuple: "one or more texts",
        }
        return kinds[self.kind]


@cache
def options() -> tuple[Option, ...]:
    """Every option, in the order of the dataclasses."""
    return tuple(
        Option(section.name, field.name, kind, field.default, **field.metadata)
        for section in dataclasses.fields(Config)
        for field, kind in _fields(typing.get_type_hints(Config)[section.name])
    )


def add_flags(
    parser: argparse.ArgumentParser, sections: Sequence[str] = (), *, positional: bool = True, several: bool = False
) -> None:
    """Add the options of `sections` (all by default) and `--config`; read them with `from_args`.

    With `positional`, the model may also stand without its flag; with `several` more than one may, which `from_args` takes no heed of.
    """
    if positional:
        words = "the same as --model" + ("; or several models behind one front" if several else "")
        parser.add_argument("positional_model", nargs="*" if several else "?", metavar="MODEL", help=words)
    parser.add_argument("--config", metavar="FILE", help="a TOML, JSON or YAML file of options; flags win over it")
    groups = {field.name: field for field in dataclasses.fields(Config)}
    for name in sections or groups:
        title = (typing.get_type_hints(Config)[name].__doc__ or name).rstrip(".")
        group = parser.add_argument_group(title)
        for option in options():
            if option.section == name:
                _add_flag(group, option)


def from_args(args: argparse.Namespace) -> Config:
    """The Config that a parsed command line asks for, on top of its --config file and the environment."""
    return from_options(given(args))


def given(args: argparse.Namespace) -> dict[str, Any]:
    """What the user set, by field, and nothing else: flags over the --config file over the environment."""
    secrets = {"api_key": env.api_key(), "admin_api_key": env.admin_api_key()}
    values: dict[str, Any] = {name: key for name, key in secrets.items() if key}
    if args.config:
        values |= _by_field(_read_file(Path(args.config)))
    flags = {name.removeprefix(_DEST): value for name, value in vars(args).items() if name.startswith(_DEST)}
    positional = getattr(args, "positional_model", None)
    if isinstance(positional, list):
        positional = positional[0] if len(positional) == 1 else None
    if positional:
        if "model" in flags:
            raise ConfigError(f"the model is given twice: {positional} and {flag_of('model')} {flags['model']}.")
        flags["model"] = positional
    return values | flags


def from_options(given: Mapping[str, Any]) -> Config:
    """The Config with `given` set; ConfigError for an unknown name or a value of the wrong type."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in _by_field(given).items():
        option = _names()[name]
        sections.setdefault(option.section, {})[option.field] = option.read(value)
    types_of = typing.get_type_hints(Config)
    return Config(**{name: types_of[name](**values) for name, values in sections.items()})


def replace(config: Config, section: str, **values: Any) -> Config:
    """`config` with fields of one section changed."""
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def flag_of(field: str) -> str:
    """How messages call the option of a field."""
    return _names()[field].flags[0]


def section_of(name: str) -> str:
    """Where the option of a name is, under any of its spellings. Raises ConfigError if there is none."""
    (field,) = _by_field({name: None})
    return _names()[field].section


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _fields(section: type) -> Iterable[tuple[dataclasses.Field[Any], type]]:
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = next(kind for kind in kinds if kind is not type(None))
        yield field, typing.get_origin(kind) or kind


def _add_flag(group: argparse._ArgumentGroup, option: Option) -> None:
    default = _shown(option)
    common: dict[str, Any] = {"dest": _DEST + option.field, "default": argparse.SUPPRESS}
    if option.kind is bool:
        group.add_argument(*option.flags, action="store_true", help=f"{option.help} ({default})", **common)
        off = [f"--no-{flag.removeprefix('--')}" for flag in option.flags]
        short = option.flags[0].removeprefix("--").removeprefix("enable-")
        off += [flag for flag in (f"--no-{short}", *option.off) if flag not in off]
        group.add_argument(*off, action="store_false", help=f"the opposite of {option.flags[0]}", **common)
        return
    metavar = option.metavar or (
        "{" + ",".join(option.choices) + "}" if option.choices else _name(option.flags[0]).upper()
    )
    if option.kind is tuple:
        common["nargs"] = "+"
    if option.several:
        common["action"] = _Joined
    group.add_argument(*option.flags, metavar=metavar, help=f"{option.help} ({default})", **common)


class _Joined(argparse.Action):
    """A flag that may be given again: its values, separated by commas."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def _shown(option: Option) -> str:
    if option.default is None:
        return "default: derived" if option.derived else "default: none"
    if option.kind is bool:
        return "default: on" if option.default else "default: off"
    if option.metavar == "BYTES":
        return f"default: {option.default >> 20}M"
    return f"default: {option.default}"


@cache
def _names() -> dict[str, Option]:
    return {name: option for option in options() for name in option.names}


def _by_field(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under the fields' own names; ConfigError for names that no option has, or two spellings of one."""
    result: dict[str, Any] = {}
    for raw, value in given.items():
        name = _name(raw)
        if name not in _names():
            near = difflib.get_close_matches(name, _names(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " `sapwood serve --help` lists the options."
            raise ConfigError(f"unknown option {raw!r}.{hint}")
        field = _names()[name].field
        if field in result:
            raise ConfigError(f"{raw!r} sets {flag_of(field)}, which is set already under another spelling.")
        result[field] = value
    return result


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        match path.suffix:
            case ".toml":
                content = tomllib.loads(text)
            case ".json":
                content = json.loads(text)
            case ".yaml" | ".yml":
                content = _read_yaml(path, text)
            case _:
                raise ConfigError(f"--config {path}: the name must end in .toml, .json, .yaml or .yml.")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}.") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--config {path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected names and values, got {type(content).__name__}.")
    return content


def _read_yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"--config {path}: YAML needs PyYAML: pip install 'sapwood[yaml]', or use TOML.") from None
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} cannot be read: {error}.") from error
