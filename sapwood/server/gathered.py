"""The metrics of several models as one page: each sample says of which model it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sapwood.server.house import House

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(\{(.*)\})? (.+)")
_MOVES = {
    "loads": "How often a model was loaded.",
    "wakes": "How often one was woken.",
    "sleeps": "How often one was put to sleep.",
    "unloads": "How often one was ended.",
}


def gathered(pages: Mapping[str, bytes], house: House) -> bytes:
    """`pages` are those of the models that are there, by name."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for model, page in pages.items():
        family = ""
        for line in page.decode().splitlines():
            if line.startswith("# "):
                _, kind, name, *_ = line.split(" ", 3)
                family = name
                mine = heads.setdefault(family, [])
                if not any(one.startswith(f"# {kind} ") for one in mine):
                    mine.append(line)
            elif (found := _SAMPLE.fullmatch(line)) is not None:
                name, _, labels, value = found.groups()
                own = "" if labels and re.search(r'(^|,)model="', labels) else f'model="{model}"'
                both = ",".join(filter(None, (labels, own)))
                samples.setdefault(family, []).append(f"{name}{{{both}}} {value}")
    lines = [line for family, head in heads.items() for line in (*head, *samples.get(family, ()))]
    return "\n".join([*lines, *_moves(house), *_states(house), ""]).encode()


def _moves(house: House) -> list[str]:
    found = []
    for name, words in _MOVES.items():
        whole = f"sapwood_house_{name}_total"
        found += [f"# HELP {whole} {words}", f"# TYPE {whole} counter", f"{whole} {float(house.moves[name])}"]
    return found


def _states(house: House) -> list[str]:
    name = "sapwood_house_state"
    lines = [f"# HELP {name} 1 for the state that a model is in.", f"# TYPE {name} gauge"]
    return lines + [f'{name}{{model="{one.name}",state="{one.state}"}} 1.0' for one in house.members]
