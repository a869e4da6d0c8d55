"""`sapwood cache`: look after a directory of --kv-store file:DIR."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "list, clear, export or import prefixes that are kept on disk"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listed = actions.add_parser("ls", help="the models whose prefixes are there, and how much of each")
    cleared = actions.add_parser("clear", help="delete everything")
    packed = actions.add_parser("export", help="write it to one file, for --preload-cache or import")
    unpacked = actions.add_parser("import", help="add what such a file has")
    unpacked.add_argument("file", metavar="FILE", type=Path)
    for action in (listed, cleared, packed, unpacked):
        action.add_argument("folder", metavar="DIR", type=Path)
    packed.add_argument("file", metavar="FILE", type=Path)
    packed.add_argument("--only", metavar="FINGERPRINT", default="", help="of this model alone, as `ls` shows it")


def run(args: argparse.Namespace) -> int:
    from sapwood.cli.terminal import console, print_rows
    from sapwood.config.resolve import gib
    from sapwood.stores import folder

    match args.action:
        case "ls":
            found = folder.contents(args.folder)
            rows = [(one.origin[:12], str(one.num_pages), gib(one.num_bytes), one.about) for one in found]
            print_rows(console(), rows, header=("fingerprint", "pages", "size", "model"))
        case "clear":
            print(f"{gib(folder.clear(args.folder))} freed")
        case "export":
            print(f"{folder.pack(args.folder, args.file, args.only)} pages in {args.file}")
        case _:
            print(f"{folder.unpack(args.file, args.folder)} pages added to {args.folder}")
    return 0
