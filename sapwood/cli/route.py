"""`sapwood route`: one address before several servers."""

from __future__ import annotations

import argparse
from pathlib import Path

from sapwood.base.errors import UserError
from sapwood.config import env

HELP = "one address before several servers: `sapwood route URL ...`, or a table of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("servers", nargs="+", metavar="URL|FILE", help="servers, or one table of them (a .toml file)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--policy", help="how a server is chosen, where no table says (default: cache_aware)")
    parser.add_argument(
        "--api-key", metavar="KEY[,KEY]", help="clients must send one of these (or set SAPWOOD_API_KEY)"
    )
    parser.add_argument("--api-keys-file", metavar="FILE", help="keys with names and limits, as for `sapwood serve`")
    parser.add_argument("--admin-api-key", metavar="KEY", help="for who drains servers (or set SAPWOOD_ADMIN_API_KEY)")
    parser.add_argument(
        "--drain-seconds", type=float, default=30.0, help="that running requests have at the end (default: %(default)s)"
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def run(args: argparse.Namespace) -> int:
    from sapwood.config.options import ServerConfig
    from sapwood.observe.log import set_up_logging
    from sapwood.route.table import of_urls, read
    from sapwood.server.door import Door
    from sapwood.server.serve import run as run_loop

    try:
        from sapwood.route.app import Router, serve
    except ImportError as error:
        raise UserError("`sapwood route` needs aiohttp and httptools: pip install 'sapwood[route]'.") from error
    set_up_logging(args.log_level)
    path = Path(args.servers[0]) if len(args.servers) == 1 and args.servers[0].endswith(".toml") else None
    if path is not None and args.policy is not None:
        raise UserError(f"--policy is not taken beside a table; write policy = {args.policy!r} into {path}.")
    table = read(path) if path is not None else of_urls(args.servers, args.policy or "cache_aware")
    options = ServerConfig(
        host=args.host,
        port=args.port,
        api_key=args.api_key or env.api_key(),
        api_keys_file=args.api_keys_file,
        admin_api_key=args.admin_api_key or env.admin_api_key(),
        drain_seconds=args.drain_seconds,
    )
    router = Router(table, options, path)
    with Door(options) as door:
        run_loop(serve(router, door, options, on_ready=_say))
    return 0


def _say(url: str) -> None:
    print(f"sapwood route: {url}", flush=True)
