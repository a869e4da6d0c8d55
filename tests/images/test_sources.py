"""Where images may come from, and what of them is refused before it costs anything."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sapwood.base.errors import RequestError
from sapwood.images import sources
from sapwood.images.decode import decoded
from sapwood.images.gallery import Gallery
from sapwood.images.sources import Sources, is_public
from sapwood.images.square import Square
from tests.seeing import picture

MOST = 1_000_000


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def claiming(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header says so."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def scanned(count: int) -> bytes:
    """A JPEG in which the last scan, of few bytes, is repeated so often."""
    whole = png(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * count + whole[-2:]


def packed_bmp() -> bytes:
    """Of 8 bits a pixel and in runs, one of which is all there is."""
    palette = bytes(4 * 256)
    head = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 8, 1, 4, 0, 0, 256, 0)
    file = struct.pack("<IHHI", 14 + len(head) + len(palette) + 4, 0, 0, 14 + len(head) + len(palette))
    return b"BM" + file + head + palette + b"\4\0\0\1"


def read(where: Sources, url: str) -> bytes:
    return asyncio.run(where.read(url))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(kind: str) -> None:
    image = decoded(png(picture(20, 10), kind), most_pixels=MOST)
    assert image.size == (20, 10) and image.mode == "RGB"
    if kind in ("PNG", "BMP"):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture(20, 10)))


def test_transparency_is_white_and_cameras_are_heard() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decoded(png(clear), most_pixels=MOST).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    assert decoded(png(picture(20, 10), "JPEG", exif=exif), most_pixels=MOST).size == (10, 20)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "none of"),
        (b"GIF89a", "none of|decoded"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of"),
        (png(picture(20, 10))[:200], "decoded"),
        (png(picture(20, 10), "JPEG")[:300], "decoded"),
        (claiming(100_000, 10_000), "pixels"),
        (claiming(2**31 - 1, 2**31 - 1), "pixels"),
        (claiming(30_000, 30_000, zlib.compress(bytes(1 << 20))), "pixels"),
        (claiming(900, 900, zlib.compress(bytes(100))), "decoded"),
        (scanned(60), "scans"),
        (packed_bmp(), "compressed BMP"),
    ],
)
def test_hostile_images(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decoded(data, most_pixels=MOST)


def test_many_scans_are_counted_in_the_first_image_alone() -> None:
    assert decoded(scanned(10), most_pixels=MOST).size == (64, 64)
    assert decoded(scanned(0) + b"\xff\xda" * 100, most_pixels=MOST).size == (64, 64)


def test_an_image_as_narrow_as_can_be_is_refused_before_it_is_stretched() -> None:
    tower = SimpleNamespace(vit=SimpleNamespace(clip=True, image=28), length=4)
    square = Square(tower, {"size": {"shortest_edge": 28}}, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="200 times"):
        square.prepare(Image.new("RGB", (10_000_000, 1)))
    assert square.prepare(Image.new("RGB", (200, 1))).length == 4


def test_images_beyond_the_context_are_not_gathered() -> None:
    tower = SimpleNamespace(vit=SimpleNamespace(clip=True, image=28), length=4)
    gallery = Gallery(Square(tower, {}, 1), Sources(), most_pixels=MOST)  # type: ignore[arg-type]
    urls = [(f"data:image/png;base64,{base64.b64encode(png(picture(20, 10))).decode()}", f"at {i}") for i in range(3)]
    assert len(asyncio.run(gallery.media(urls, most=12))) == 3
    with pytest.raises(RequestError, match="take 12 positions") as refused:
        asyncio.run(gallery.media(urls, most=11))
    assert (refused.value.param, refused.value.code) == ("at 2", "context_length_exceeded")


def test_data_urls() -> None:
    whole = Sources()
    assert read(whole, "data:image/png;base64," + base64.b64encode(b"abc").decode()) == b"abc"
    for url in (
        "data:image/png,abc",
        "data:image/png;base64,a",
        "data:;base64,%%%%",
        "data:",
        "ftp://x/y",
        "",
        "image",
    ):
        with pytest.raises(ValueError, match=r"URL|base64"):
            read(whole, url)


def test_files_below_a_root(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a b.png").write_bytes(b"abc")
    (outside / "b.png").write_bytes(b"secret")
    (inside / "link.png").symlink_to(outside / "b.png")
    allowed = Sources(root=str(inside))
    assert read(allowed, f"file://{inside}/a%20b.png") == b"abc"
    for url in (f"file://{outside}/b.png", f"file://{inside}/link.png", f"file://{inside}/../out/b.png", f"file://{inside}",
                f"file://{inside}/none.png", f"file://elsewhere{inside}/a.png"):  # fmt: skip
        with pytest.raises(ValueError, match=r"no such file|no host"):
            read(allowed, url)
    with pytest.raises(ValueError, match="--allowed-local-media-path"):
        read(Sources(), f"file://{inside}/a%20b.png")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(11))
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read(Sources(root=str(tmp_path)), f"file://{tmp_path}/a.png")
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read(Sources(), "data:image/png;base64," + base64.b64encode(bytes(11)).decode())


@asynccontextmanager
async def answering(answer: bytes, *, hang: bool = False, heard: list[bytes] | None = None) -> AsyncIterator[int]:
    """A host that says this to whoever asks, at a port, and notes what was `heard`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await reader.readuntil(b"\r\n\r\n")
            if heard is not None:
                heard.append(asked)
            writer.write(answer)
            if hang:
                await reader.read()
        except ConnectionError:
            pass  # who asked has gone
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def fetched(
    answer: bytes,
    *,
    public: Callable[[str], bool] = lambda address: True,
    hang: bool = False,
    heard: list[bytes] | None = None,
) -> bytes:
    async def fetch() -> bytes:
        async with answering(answer, hang=hang, heard=heard) as port:
            where = Sources(hosts=[f"images.example:{port}"], resolve=resolve, public=public)
            return await where.read(f"http://images.example:{port}/a.png?b=c")

    async def resolve(host: str, port: int) -> list[str]:
        assert host == "images.example"
        return ["127.0.0.1"]

    return asyncio.run(fetch())


def test_hosts_may_send_images_and_recordings() -> None:
    heard = list[bytes]()
    fetched(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", heard=heard)
    assert b"accept: image/*, audio/*" in heard[0].lower()


def test_allowed_hosts() -> None:
    assert fetched(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc") == b"abc"
    assert fetched(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n") == b"abc"
    for host in (
        "http://other.example/a.png",
        "http://images.example:81/a.png",
        "https://images.example@evil/a",
        "http:///a",
    ):
        with pytest.raises(ValueError, match="--allowed-media-domains"):
            read(Sources(hosts=["images.example"]), host)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",
            "redirects are not followed",
        ),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "not whole"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not whole"),
    ],
)
def test_answers_that_are_none(answer: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fetched(answer)


def test_a_host_that_sends_too_much_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        fetched(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000))
    monkeypatch.setattr(sources, "SECONDS", 0.05)
    with pytest.raises(ValueError, match="has not sent it"):
        fetched(b"", hang=True)


def test_nobody_waits_for_a_host_to_hang_up(monkeypatch: pytest.MonkeyPatch) -> None:
    aborted = []

    class Silent:
        transport = SimpleNamespace(abort=lambda: aborted.append(True))

        def write(self, data: bytes) -> None: ...

        def close(self) -> None: ...

        async def wait_closed(self) -> None:
            await asyncio.Event().wait()

    async def connect(*where: object, **how: object) -> tuple[asyncio.StreamReader, Silent]:
        reader = asyncio.StreamReader()
        reader.feed_data(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
        return reader, Silent()

    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.215.14"]

    monkeypatch.setattr(asyncio, "open_connection", connect)
    assert read(Sources(hosts=["images.example"], resolve=resolve), "http://images.example/a.png") == b"abc"
    assert aborted


def test_private_networks_are_out_of_reach() -> None:
    with pytest.raises(ValueError, match="private network"):
        fetched(b"HTTP/1.1 200 OK\r\n\r\n", public=is_public)
    private = ("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "fd00::1", "0.0.0.0", "::ffff:10.0.0.1",
               "100.64.0.1", "224.0.0.1")  # fmt: skip
    assert not any(map(is_public, private))
    assert all(map(is_public, ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")))
