"""Where a server listens: an address or a path of this machine, with or without TLS."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
from pathlib import Path

from sapwood.base.errors import ConfigError
from sapwood.config.options import ServerConfig

_ALIVE_SECONDS, _ALIVE_TIMES = (
    30,
    3,
)  # a client that has been silent for so long is asked whether it is there, so many times
_UNSENT_SECONDS = 120  # for a client to take what it was sent


class Door:
    """A bound socket and how TLS is spoken there, None if it is not. Nothing is accepted yet.

    Raises ConfigError, saying what to change, for an address that cannot be had and for certificates that cannot be used.
    """

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        self.tls = tls_of(server)
        if server.uds is None:
            self.sock = _at_address(server.host, server.port)
        else:
            self.sock = _at_path(Path(server.uds))

    @property
    def url(self) -> str:
        """For clients; `unix:` and the path of a socket that has one."""
        server = self._server
        if server.uds is not None:
            return f"unix:{server.uds}"
        scheme = "http" if self.tls is None else "https"
        host = f"[{server.host}]" if ":" in server.host else server.host
        return f"{scheme}://{host}:{self.sock.getsockname()[1]}"

    def renew(self) -> None:
        """Read the certificate again: connections that begin from now on have it. Raises ConfigError, and has the old one then."""
        if self.tls is not None:
            tls_of(self._server)  # so that one half of a pair is never taken without the other
            _load(self.tls, self._server)

    def close(self) -> None:
        self.sock.close()
        if self._server.uds is not None:
            Path(self._server.uds).unlink(missing_ok=True)

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refused(self, error: OSError) -> ConfigError:
        """Why nobody can listen here."""
        return _refused(error, self._server.host, self._server.port)


def _at_address(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:  # getaddrinfo would take it modulo 65536
        raise ConfigError(f"--port must be in [0, 65535], got {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"Cannot listen on {host}:{port}: {error}. Choose another --host or --port.") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _watch_peers(sock)
        sock.bind(address)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _refused(error, host, port) from error
    return sock


def _watch_peers(sock: socket.socket) -> None:
    """Have connections end whose other side has vanished without a word. Accepted sockets inherit it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_KEEPIDLE": _ALIVE_SECONDS, "TCP_KEEPINTVL": _ALIVE_SECONDS // 3, "TCP_KEEPCNT": _ALIVE_TIMES}
    for name, value in (wanted | {"TCP_USER_TIMEOUT": _UNSENT_SECONDS * 1000}).items():
        if (number := getattr(socket, name, None)) is not None:  # not every system has all
            sock.setsockopt(socket.IPPROTO_TCP, number, value)


def _at_path(path: Path) -> socket.socket:
    """Whoever may write to the path may connect; that is what the umask says."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_abandoned(path)
        sock.bind(str(path))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(f"Cannot listen on {path}: {error.strerror or error}. Choose another --uds.") from error
    return sock


def remove_abandoned(path: Path) -> None:
    """A server that was killed leaves its socket behind. Raises OSError if somebody listens there, or it is something else."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        raise OSError(errno.EADDRINUSE, "another server listens there")


def tls_of(server: ServerConfig) -> ssl.SSLContext | None:
    """How TLS is spoken; None without a certificate. Raises ConfigError for files that cannot be used."""
    if server.ssl_certfile is None:
        if given := next(
            (name for name in ("keyfile", "ca_certs") if getattr(server, f"ssl_{name}") is not None), None
        ):
            raise ConfigError(f"--ssl-{given.replace('_', '-')} needs --ssl-certfile.")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _load(context, server)
    if server.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(server.ssl_ca_certs)
        except OSError as error:
            raise ConfigError(f"--ssl-ca-certs {server.ssl_ca_certs} cannot be read: {error}.") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, server: ServerConfig) -> None:
    assert server.ssl_certfile is not None
    # OpenSSL would ask for a password at the terminal if it was given none.
    password = server.ssl_keyfile_password or ""
    try:
        context.load_cert_chain(server.ssl_certfile, server.ssl_keyfile, lambda: password)
    except OSError as error:
        raise ConfigError(
            f"--ssl-certfile {server.ssl_certfile} cannot be used with --ssl-keyfile {server.ssl_keyfile or 'not given'}: "
            f"{error}. Give a certificate and its own key, in PEM, and --ssl-keyfile-password if that has one."
        ) from error


def _refused(error: OSError, host: str, port: int) -> ConfigError:
    match error.errno:
        case errno.EADDRINUSE:
            return ConfigError(
                f"Port {port} on {host} is in use. Stop what uses it, or choose another with --port (0 takes a free one)."
            )
        case errno.EACCES:
            return ConfigError(f"No permission to listen on port {port}. Choose one above 1023 with --port.")
        case errno.EADDRNOTAVAIL:
            return ConfigError(f"{host} is not an address of this machine. Choose another with --host.")
        case _:
            return ConfigError(f"Cannot listen on {host}:{port}: {error}.")
