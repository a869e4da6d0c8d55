"""Free text up to a string behind which a grammar begins."""

from __future__ import annotations

from collections.abc import Callable


class Trigger:
    """Finds the first occurrence of a text in tokens, byte by byte; a state is how much of it has been read.

    A token may hold the end of the text and something more, which is then the beginning of what the grammar binds.
    Where that would not be allowed, the token is not: `closed[state]` are the tokens to forbid there.

    Args:
        after: The text.
        pieces: The bytes of each token.
        allows: Whether the grammar's text may begin with these bytes.
    """

    def __init__(self, after: bytes, pieces: list[bytes], allows: Callable[[bytes], bool]) -> None:
        assert after
        self.after = after
        self._back = _borders(after)
        self.closed: dict[int, list[int]] = {}
        last, known = after[-1], dict[bytes, bool]()

        def allowed(rest: bytes) -> bool:
            if rest not in known:
                known[rest] = allows(rest)
            return known[rest]

        for id, piece in enumerate(pieces):
            if last not in piece[:-1]:
                continue
            for state in range(len(after)):
                _, rest = self.read(state, piece)
                if rest and not allowed(rest):
                    self.closed.setdefault(state, []).append(id)

    def read(self, state: int, piece: bytes) -> tuple[int, bytes | None]:
        """The state after some bytes, and what is left of them behind the text; None if it has not come yet."""
        after, back = self.after, self._back
        for at, byte in enumerate(piece):
            while state and after[state] != byte:
                state = back[state]
            if after[state] == byte:
                state += 1
            if state == len(after):
                return state, piece[at + 1 :]
        return state, None


def _borders(text: bytes) -> list[int]:
    """For each length of a beginning of the text, the longest shorter beginning that is also its end."""
    back = [0, 0]
    for at in range(1, len(text)):
        state = back[at]
        while state and text[state] != text[at]:
            state = back[state]
        back.append(state + 1 if text[state] == text[at] else 0)
    return back
