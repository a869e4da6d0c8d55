"""How many edits lines alone can merge, and whether any is merged wrongly: `python bench/apply.py [--edits 200] [--show]`.

The edits are this repository's own: each change of a file in its history becomes a lazy snippet, as a model would write it,
with some lines around every change and marks for the rest. Needs git and no model.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, unified_diff
from pathlib import Path
from time import perf_counter

from sapwood.apply import Edit, Unclear, by_anchors

ROOT = Path(__file__).resolve().parent.parent
MARK = {".py": "# ... existing code ...", ".md": "... existing code ...", ".cpp": "// ... existing code ..."}
MOST_CHANGED = 60  # lines; larger ones are no edits but new files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--around", type=int, default=2, help="lines shown around each change (default: 2)")
    parser.add_argument("--show", action="store_true", help="print what was merged wrongly")
    args = parser.parse_args()
    found: Counter[str] = Counter()
    seconds = []
    for name, old, new in edits(args.edits):
        update = snippet(old.splitlines(), new.splitlines(), args.around, MARK[Path(name).suffix])
        began = perf_counter()
        try:
            merged = by_anchors(Edit("", old, update))
        except Unclear as error:
            found[f"refused: {str(error)[:60]}"] += 1
            continue
        finally:
            seconds.append(perf_counter() - began)
        outcome = "exact" if merged == new else "blank lines differ" if same(merged, new) else "WRONG"
        found[outcome] += 1
        if outcome == "WRONG" and args.show:
            print(
                name,
                update,
                *unified_diff(new.splitlines(), merged.splitlines(), "wanted", "merged", lineterm=""),
                sep="\n",
            )
    for outcome, count in found.most_common():
        print(f"{count:5d}  {outcome}")
    print(f"{1000 * sum(seconds) / len(seconds):.1f} ms an edit, {1000 * max(seconds):.0f} ms at most")
    return 1 if found["WRONG"] else 0


def edits(most: int) -> Iterator[tuple[str, str, str]]:
    """Changes of files: the name, and the text before and after."""
    commits = git("log", "--no-merges", "--format=%H").split()
    for commit in commits:
        for line in git("diff-tree", "-r", "--no-commit-id", "--diff-filter=M", commit).splitlines():
            fields, name = line.split("\t", 1)
            _, _, before, after, _ = fields.split()
            if Path(name).suffix not in MARK:
                continue
            old, new = git("cat-file", "blob", before), git("cat-file", "blob", after)
            if changed(old, new) <= MOST_CHANGED:
                yield name, old, new
                most -= 1
                if not most:
                    return


def git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, check=True, encoding="utf-8").stdout


def changed(old: str, new: str) -> int:
    return sum(line[0] in "+-" for line in unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0))


def snippet(old: Sequence[str], new: Sequence[str], around: int, mark: str) -> str:
    """The new lines with some unchanged ones on either side of each change, and marks for all others."""
    shown: set[int] = set()
    for tag, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            shown |= set(range(start, end)) | set(beside(new, start - 1, -1, around)) | set(beside(new, end, 1, around))
    lines: list[str] = []
    for place, line in enumerate(new):
        if place in shown:
            lines.append(line)
        elif not lines or lines[-1] != mark:
            lines.append(mark)
    return "\n".join(lines) + "\n"


def beside(lines: Sequence[str], place: int, step: int, count: int) -> Iterator[int]:
    """Places from one on until so many lines that say something are among them."""
    while count and 0 <= place < len(lines):
        yield place
        count -= any(map(str.isalnum, lines[place]))
        place += step


def same(one: str, other: str) -> bool:
    return [line for line in one.splitlines() if line.strip()] == [line for line in other.splitlines() if line.strip()]


if __name__ == "__main__":
    raise SystemExit(main())
