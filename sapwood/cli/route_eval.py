"""`sapwood route-eval`: how good the rules of a router's table are."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from sapwood.base.errors import UserError

HELP = "score the rules of a router's table on labelled questions (JSON lines with question, want and enough)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE", help="a router's table (.toml)")
    parser.add_argument("questions", metavar="QUESTIONS", help="a file of JSON lines, as docs/semantic.md says")
    parser.add_argument("--name", default="auto", help="whose rules are scored (default: %(default)s)")
    parser.add_argument("--mistakes", action="store_true", help="list the questions that went elsewhere than wanted")
    parser.add_argument("--json", action="store_true", help="all of it, as JSON")


def run(args: argparse.Namespace) -> int:
    from sapwood.observe.log import set_up_logging
    from sapwood.route.table import read as read_table

    set_up_logging("warning")
    try:
        from sapwood.route.semantic.evaluate import evaluate, read, written
    except ImportError as error:
        raise UserError("`sapwood route-eval` needs aiohttp and httptools: pip install 'sapwood[route]'.") from error
    questions = read(Path(args.questions))
    report = asyncio.run(evaluate(read_table(Path(args.table)), args.name, questions))
    told = report.told()
    if args.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return 0
    print(written(report, told))
    for one in report.mistakes if args.mistakes else ():
        print(f"{one.want} -> {one.chose} ({one.rule} {one.score:.2f}): {one.question}")
    return 0
