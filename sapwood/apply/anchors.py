"""Merging a lazy snippet where its lines leave no doubt, without any model.

*Anchors* are lines, or runs of two or three of them, that stand once in the file and once in the snippet. Each hunk must
have one, and all must come in the file's order. Between anchors the usual difference of lines holds; above a hunk's first
and below its last one lines are matched as near as can be. What a hunk covers of the file, from its first to its last
matched line, becomes the hunk; all else stays.

    file                     snippet                    merged
    a                        # ... existing code ...    a
    b   ─────────────────────  b                        b
    c                          new                      new
    d   ─────────────────────  d                        d
    e                        # ... existing code ...    e

Before that, a hunk that only puts lines between others is found by its ends (`sapwood.apply.inserted`).

Refused, as Unclear: a hunk without an anchor (but for one at an end of the snippet, which is put at that end of the file), lines
in another order, a new line at a mark that looks like the line which would stay beside it (it may be meant to replace
it), the loss of many lines where nothing says that they go, and few lines of the file beyond an end of the snippet that
has no mark; lines at an end of a hunk that stand elsewhere in the file; and a hunk without anything new that may stand in several places.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from sapwood.apply.inserted import Pair, inserted
from sapwood.apply.lazy import Hunk, Unclear, hunks_of, plain, telling

_LONGEST_RUN = 3  # lines of an anchor
_NEAR = 3  # lines that may be passed over above the first anchor and below the last, beside as many as the hunk has
_ALIKE = 0.6  # from which a new line may be meant to replace another
_MANY = 60  # lines beyond an end without a mark that surely stay, though there are marks elsewhere
_FEW = 8  # lines that may go without a word, beside twice as many as come in their place


def merge(code: str, update: str) -> str:
    """The file with the snippet's changes. Raises Unclear, which says why, where it cannot be told how."""
    hunks = hunks_of(update)
    if not hunks:
        raise Unclear("the update has no lines")
    ends = code.splitlines(keepends=True)
    newline = "\r\n" if sum(line.endswith("\r\n") for line in ends) * 2 > len(ends) else "\n"
    old = code.splitlines()
    if len(hunks) == 1 and not (hunks[0].after or hunks[0].before) and _whole(old, hunks[0].lines):
        merged = hunks[0].lines
    else:
        merged = _merge(old, hunks)
    text = newline.join(merged)
    return text + newline if ends and ends[-1].endswith(("\n", "\r")) and text else text


def _whole(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether lines are a whole file: they begin and end as it does."""
    one, other = ([line for line in map(plain, lines) if line] for lines in (old, new))
    return bool(one) and one[0] == other[0] and one[-1] == other[-1]


def _merge(old: Sequence[str], hunks: Sequence[Hunk]) -> list[str]:
    olds = [plain(line) for line in old]
    news = [[plain(line) for line in hunk.lines] for hunk in hunks]
    put = [inserted(olds, lines) for lines in news]
    anchors = _anchors(olds, news, put)
    out: list[str] = []
    done = 0  # lines of the file that are merged or passed over
    for number, hunk in enumerate(hunks):
        last_of_next = next((pairs[0].old for pairs in anchors[number + 1 :] if pairs), len(old))
        if anchors[number]:
            pairs = put[number] or _matched(olds, hunk, anchors[number], done, last_of_next)
            first, end = pairs[0].old, pairs[-1].old + 1
        else:
            first = end = _end_of_file(olds, hunk, number, len(hunks))
            pairs = []
        most = _MANY if any(one.after or one.before for one in hunks) else _FEW
        if number == 0 and not hunk.after:
            _check_rest(olds[:first], most)
        if number == len(hunks) - 1 and not hunk.before:
            _check_rest(olds[end:], most)
        if first < done:
            raise Unclear("parts of the update overlap in the file")
        _add(out, old[done:first])
        _add(out, _written(old, hunk, pairs), joint=True)
        done = end
        if done < len(old) and out and not out[-1].strip() and not olds[done] and not _blank_kept(hunk, pairs):
            out.pop()
    _add(out, old[done:])
    return out


def _check_rest(lines: Sequence[str], most: int) -> None:
    """What is left of the file beyond an end of the snippet that has no mark: nothing, or so much that it surely stays."""
    if any(lines) and sum(map(telling, lines)) <= most:
        raise Unclear("the update ends without a mark near an end of the file, where some lines may stay or go")


def _blank_kept(hunk: Hunk, pairs: Sequence[Pair]) -> bool:
    """Whether the hunk's last line is one of the file's."""
    return bool(pairs) and pairs[-1].new == len(hunk.lines) - 1


def _add(out: list[str], lines: Sequence[str], *, joint: bool = False) -> None:
    """Add lines; at a joint one blank line is enough."""
    if joint and lines and out and not lines[0].strip() and not out[-1].strip():
        lines = lines[1:]
    out.extend(lines)


# -- anchors ------------------------------------------------------------------------------------------------------


def _anchors(olds: Sequence[str], news: Sequence[Sequence[str]], put: Sequence[list[Pair] | None]) -> list[list[Pair]]:
    """Of each hunk the lines that stand once on either side; of those with none, runs that do; all lines of those that are `put` between
    others. In order, or Unclear."""
    found = [list(pairs or ()) for pairs in put]
    for length in range(1, _LONGEST_RUN + 1):
        at = dict(_runs(olds, length))
        times = Counter(run for run, _ in _runs(olds, length))
        mine = Counter(run for lines in news for run, _ in _runs(lines, length))
        for pairs, lines in zip(found, news, strict=True):
            if pairs:
                continue
            for run, places in _runs(lines, length):
                if times[run] == mine[run] == 1:
                    pairs += map(Pair._make, zip(places, at[run], strict=True))
            pairs[:] = sorted(set(pairs))
    return _ordered(found)


def _ordered(found: list[list[Pair]]) -> list[list[Pair]]:
    """The same without the few lines that stand elsewhere in the file: they were moved, so here they are new. Raises Unclear
    where that does not leave an anchor to each that had one, where lines are too many to have been moved, or where it may be others."""
    every = [pair.old for pairs in found for pair in pairs]
    kept = set(_rising(every))
    if len(kept) < len(every):
        if not _only(every):
            raise Unclear(
                "lines of the update stand in another order in the file, and it is not clear which were moved"
            )
        mine = [[pair for pair in pairs if pair.old in kept] for pairs in found]
        if 5 * len(kept) < 4 * len(every) or any(was and not now for was, now in zip(found, mine, strict=True)):
            raise Unclear("lines of the update stand in another order in the file")
        # At the ends of a hunk lines are shown to say where it is.
        if any(pair < now[0] or pair > now[-1] for was, now in zip(found, mine, strict=True) for pair in was):
            raise Unclear("lines at an end of a part of the update stand in another order in the file")
        return mine
    return found


def _rising(values: Sequence[int]) -> list[int]:
    """The longest part of some different numbers that rises."""
    ends: list[int] = []  # of parts of each length, the least number that ends one
    before: dict[int, int | None] = {}
    for value in values:
        place = bisect_left(ends, value)
        before[value] = ends[place - 1] if place else None
        ends[place : place + 1] = [value]
    found: list[int] = []
    value_or_none = ends[-1] if ends else None
    while value_or_none is not None:
        found.append(value_or_none)
        value_or_none = before[value_or_none]
    return found[::-1]


def _only(values: Sequence[int]) -> bool:
    """Whether no other part of these numbers that rises is as long as the longest."""
    before, behind = _lengths(values), _lengths([-value for value in reversed(values)])[::-1]
    most = max(before)
    return sum(one + other - 1 == most for one, other in zip(before, behind, strict=True)) == most


def _lengths(values: Sequence[int]) -> list[int]:
    """Of the longest parts that rise and end with each."""
    ends: list[int] = []
    found = []
    for value in values:
        place = bisect_left(ends, value)
        ends[place : place + 1] = [value]
        found.append(place + 1)
    return found


def _runs(lines: Sequence[str], length: int) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Runs of lines that say something, with their places."""
    places = [place for place, line in enumerate(lines) if telling(line)]
    for start in range(len(places) - length + 1):
        mine = tuple(places[start : start + length])
        yield tuple(lines[place] for place in mine), mine


def _end_of_file(olds: Sequence[str], hunk: Hunk, number: int, count: int) -> int:
    """Where lines go that are nowhere in the file: at the end of the file at which they are in the update."""
    if any(plain(line) in olds for line in hunk.lines if telling(plain(line))):
        raise Unclear("a part of the update has only lines that stand in the file several times")
    if number == count - 1 and hunk.after and not hunk.before:
        place, beside = len(olds), next((line for line in reversed(olds) if line), "")
    elif number == 0 and hunk.before and not hunk.after:
        place, beside = 0, next((line for line in olds if line), "")
    else:
        raise Unclear("a part of the update has no line that says where in the file it belongs")
    if beside.startswith(("#!", "<?")) or any(_alike(plain(line), beside) for line in hunk.lines):
        raise Unclear("new lines at the end of the file look like those that stand there")
    return place


# -- what a hunk covers -------------------------------------------------------------------------------------------


def _matched(olds: Sequence[str], hunk: Hunk, anchors: Sequence[Pair], low: int, high: int) -> list[Pair]:
    """All lines of a hunk that are lines of the file in [low, high), given some; Unclear where that leaves a doubt."""
    news = [plain(line) for line in hunk.lines]
    pairs = [*_near(news, olds, anchors[0], -1, low), anchors[0]]
    pairs = sorted(pairs)
    for one, other in itertools.pairwise(anchors):
        between = SequenceMatcher(
            None, news[one.new + 1 : other.new], olds[one.old + 1 : other.old], autojunk=False
        ).get_matching_blocks()
        pairs += [
            Pair(one.new + 1 + block.a + i, one.old + 1 + block.b + i) for block in between for i in range(block.size)
        ]
        pairs.append(other)
    pairs += _near(news, olds, anchors[-1], 1, high)
    for one, other in itertools.pairwise(pairs):
        if other.old - one.old - 1 > _FEW + 2 * (other.new - one.new - 1):
            raise Unclear(f"{other.old - one.old - 1} lines of the file would go, and nothing says so")
    for pair, beyond in ((pairs[0], olds[low : pairs[0].old][::-1]), (pairs[-1], olds[pairs[-1].old + 1 : high])):
        if _reaches(pair, pairs, anchors):
            continue
        if news[pair.new] and news[pair.new] in beyond[: _NEAR + len(news)]:
            raise Unclear(f"{news[pair.new]!r} may be the one that stands there, or another")
    _check_unchanged(news, olds, pairs)
    _check_edge(news[: pairs[0].new], olds[low : pairs[0].old])
    _check_edge(news[pairs[-1].new + 1 :][::-1], olds[pairs[-1].old + 1 : high][::-1])
    return pairs


def _check_unchanged(news: Sequence[str], olds: Sequence[str], pairs: Sequence[Pair]) -> None:
    """A hunk that stands in the file as it is may show what is left where something goes, if its ends stand there several times."""
    if {place for place, line in enumerate(news) if line} - {pair.new for pair in pairs}:
        return
    told = [line for line in news if telling(line)]
    if (
        pairs[-1].old - pairs[0].old == pairs[-1].new - pairs[0].new
        and max(olds.count(told[0]), olds.count(told[-1])) > 1
    ):
        raise Unclear(
            f"{told[0]!r} and what follows it stand in the file as they are, and something beside them may go"
        )


def _reaches(pair: Pair, pairs: Sequence[Pair], anchors: Sequence[Pair]) -> bool:
    """Whether a line at an edge is an anchor, or stands beside one with nothing but lines of the file between, here as there."""
    inner = sorted(anchors, key=lambda anchor: abs(anchor.new - pair.new))[0]
    step = 1 if inner.new >= pair.new else -1
    between = {Pair(pair.new + step * far, pair.old + step * far) for far in range(abs(inner.new - pair.new) + 1)}
    return inner in between and between <= set(pairs)


def _near(news: Sequence[str], olds: Sequence[str], anchor: Pair, step: int, bound: int) -> list[Pair]:
    """Matches on one side of an anchor, each as near to the last as can be."""
    found: list[Pair] = []
    new, old = anchor.new + step, anchor.old + step
    spare = _NEAR + len(news)
    while 0 <= new < len(news):
        most = bound - 1 if step < 0 else bound
        places = range(old, most, step)[: spare if telling(news[new]) else 1]
        place = next((place for place in places if olds[place] == news[new]), None)
        if place is not None:
            if any(olds[at] for at in range(old, place, step)) and olds.count(news[new]) > 1:
                raise Unclear(f"{news[new]!r} may be the one that stands there, or another")
            found.append(Pair(new, place))
            spare -= abs(place - old)
            old = place + step
        new += step
    return found


def _check_edge(new: Sequence[str], kept: Sequence[str]) -> None:
    """New lines at a mark, and the lines of the file that stay beside them, the nearest last: does one mean another?"""
    beside = next((line for line in reversed(kept) if telling(line)), None)
    if beside is not None and any(_alike(line, beside) for line in new):
        raise Unclear(f"a new line may be meant to replace {beside!r}, or to stand beside it")
    outer = next(filter(telling, new), None)  # beside the mark, where lines of the file are shown
    if outer is not None and outer in kept:
        raise Unclear(f"{outer!r} may be the one that stands there, or another")
    near = set(kept[-_NEAR - 2 * len(new) :] if new else ()) - {""}
    again = [line for line in new if line in near]
    if any(map(telling, again)) or (again and not _balanced(new)):
        raise Unclear(f"{again[0]!r} may be the one that stands there, or another")


def _balanced(lines: Sequence[str]) -> bool:
    """Whether lines open as many brackets as they close."""
    text = "".join(lines)
    return all(text.count(one) == text.count(other) for one, other in ("()", "[]", "{}"))


def _alike(one: str, other: str) -> bool:
    return telling(one) and SequenceMatcher(None, one, other, autojunk=False).ratio() >= _ALIKE


# -- writing ------------------------------------------------------------------------------------------------------


def _written(old: Sequence[str], hunk: Hunk, pairs: Sequence[Pair]) -> list[str]:
    """The hunk's lines as they go into the file: indented as it is there, without blank lines that belong to marks."""
    lines, matched = hunk.lines, dict(pairs)
    shifts = {_shift(lines[new], old[at]) for new, at in pairs if lines[new].strip()}
    if shifts <= {""}:
        written = [old[matched[i]] if i in matched else line for i, line in enumerate(lines)]
    elif len(shifts) == 1 and (shift := next(iter(shifts))) is not None:
        written = [
            old[matched[i]] if i in matched else shift + line if line.strip() else line for i, line in enumerate(lines)
        ]
    elif "" in shifts:
        written = list(lines)  # some lines are indented anew
    else:
        raise Unclear("the update is indented in another way than the file")
    start, end = 0, len(written)
    while (
        pairs
        and hunk.after
        and start < pairs[0].new
        and not written[start].strip()
        and _blank(written, start, pairs[0].new)
    ):
        start += 1
    while pairs and hunk.before and end - 1 > pairs[-1].new and _blank(written, pairs[-1].new + 1, end):
        end -= 1
    return written[start:end]


def _blank(lines: Sequence[str], start: int, end: int) -> bool:
    return not any(map(str.strip, lines[start:end]))


def _shift(new: str, old: str) -> str | None:
    """What must stand before a line of the hunk so that it is indented as in the file; None if nothing makes it so."""
    mine, theirs = (line[: len(line) - len(line.lstrip())] for line in (new, old))
    return theirs.removesuffix(mine) if theirs.endswith(mine) else None
