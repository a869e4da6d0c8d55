"""Triton's interpreter as the tests need it; a worker of each family for a module's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.interpreter import interpreter
from tests.runner.subject import Padded, Subject

__all__ = ["interpreter"]


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        "cpu padded",
        pytest.param("cuda:0", marks=pytest.mark.gpu),
        pytest.param("cuda:0 padded", marks=pytest.mark.gpu),
    ],
)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Subject]]:
    made: dict[str, Subject] = {}

    def get(family: str) -> Subject:
        if family not in made:
            device, _, padded = request.param.partition(" ")
            made[family] = (Padded if padded else Subject)(family, tmp_path_factory.mktemp(family), device)
        return made[family]

    yield get
    for one in made.values():
        one.worker.shutdown()
