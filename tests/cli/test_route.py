"""`sapwood route` on the command line, before a server that this test is."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from sapwood.cli import main
from tests.route.mock import SECONDS, Mock


def test_it_serves_until_it_is_told_to_end() -> None:
    async def case() -> None:
        mock = Mock("a")
        await mock.start()
        command = [sys.executable, "-m", "sapwood", "route", mock.url, "--port", "0", "--policy", "least_load"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            url = line.removeprefix("sapwood route: ").strip()
            async with aiohttp.ClientSession() as client:
                async with client.post(f"{url}/v1/completions", json={"model": "m", "prompt": "x"}) as answer:
                    assert (await answer.json())["by"] == "a"
                    assert answer.headers["x-sapwood-route"].startswith("least_load")
                async with client.get(f"{url}/route") as answer:
                    (server,) = (await answer.json())["servers"]
                    assert server["state"] == "ready" and server["models"] == ["m"]
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), SECONDS) == 0
        finally:
            if process.returncode is None:
                process.kill()
            await mock.stop()

    asyncio.run(asyncio.wait_for(case(), 4 * SECONDS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ftp://a"], "is no address of a server"),
        (["http://a", "--policy", "best"], "there is no policy 'best'"),
        (["TABLE", "--policy", "session"], "--policy is not taken beside a table"),
        (["NOWHERE.toml"], "cannot be read"),
        (["http://a", "--port", "99999"], "--port must be in"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.toml").write_text('[[server]]\nurl = "http://a"\n')
    assert main(["route", *[str(tmp_path / "t.toml") if one == "TABLE" else one for one in arguments]]) == 2
    assert message in capsys.readouterr().err
