"""Settings of image processors that do not fit the model, and images that no model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sapwood.arch.families.llava_next import checked
from sapwood.base.errors import ModelError
from sapwood.images.gallery import Gallery
from sapwood.images.look import Preparer
from sapwood.images.sources import Sources
from tests import seeing
from tests.seeing import SEEING, picture


@pytest.mark.parametrize(
    ("family", "changed", "named"),
    [
        ("llava-next", {"size": {"shortest_edge": 56}}, "size.shortest_edge"),
        ("llava-next", {"crop_size": {"height": 14, "width": 28}}, "crop_size.height"),
        ("gemma3", {"do_pan_and_scan": True}, "do_pan_and_scan"),
        ("mistral3", {"do_resize": False}, "do_resize"),
        ("mistral3", {"do_center_crop": True}, "do_center_crop"),
        ("llava-next", {"image_grid_pinpoints": [[28, 28]]}, "image_grid_pinpoints"),
    ],
)
def test_settings_that_do_not_fit(family: str, changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    seen, tower = SEEING[family], seeing.tower(seeing.save(family, tmp_path))
    with pytest.raises(ModelError, match=named):
        seen.preparer(tower, seen.settings | changed)


def test_an_image_of_one_row_is_too_narrow(tmp_path: Path) -> None:
    for family in ("llava-next", "mistral3"):
        made = seeing.preparer(family, seeing.save(family, tmp_path / family))
        with pytest.raises(ValueError, match="too narrow"):
            made.prepare(picture(2000, 1))


def test_blank_lines_around_an_image_are_read_with_the_text(tmp_path: Path) -> None:
    made = seeing.preparer("gemma3", seeing.save("gemma3", tmp_path))
    gallery = Gallery(made, Sources(), most_pixels=10_000)
    assert gallery.token == 296 and gallery.worded("a<boi>b") == "a<boi>b"
    gallery.around = "<boi>", "\n\n<boi>\n\n"
    assert gallery.worded("a\n<boi>b") == "a\n\n\n<boi>\n\nb"
    tokens, spans = gallery.placed([5, 296, 6], [made.prepare(picture(9, 9))], "messages")
    assert tokens == [5, 296, *[seeing.IMAGE] * 4, 297, 6] and [(one.start, one.length) for one in spans] == [(2, 4)]


@pytest.mark.parametrize(
    ("given", "named"),
    [([], "list of pairs"), ([[28]], "list of pairs"), ([[28, 30]], "whole tiles of 28"), ("x", "list of pairs")],
)
def test_grids_that_are_none(given: Any, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        checked(given, 28)


@pytest.mark.parametrize("family", ["qwen2-vl", "llava-pixtral"])
def test_images_that_come_as_they_are_are_scaled_down(family: str, tmp_path: Path) -> None:
    """To so many pixels, in nearly their ratio; smaller ones stay, and so do those of families that cut tiles."""

    def size(of: Preparer, width: int, height: int) -> tuple[int, int]:
        return of.prepare(picture(width, height)).arrays["pixels"].shape[-2:]

    tower = seeing.tower(seeing.save(family, tmp_path))
    large = {"size": {"longest_edge": 10**6, "shortest_edge": 1}, "max_pixels": 10**6, "min_pixels": 1}
    settings = SEEING[family].settings | large
    free, bound = (SEEING[family].preparer(tower, settings) for _ in range(2))
    Gallery(bound, Sources(hosts=(), root=None), most_pixels=10**6).bound(200 * 100, "cpu")
    height, width = size(bound, 800, 400)
    assert height * width <= 1.2 * 200 * 100 and abs(width / height - 2) < 0.5
    assert size(free, 800, 400)[1] > 700 and size(bound, 120, 60) == size(free, 120, 60)
    assert tower.scales and not seeing.tower(seeing.save("llava", tmp_path / "llava")).scales


def test_small_images_where_less_is_wanted_than_the_settings_have(tmp_path: Path) -> None:
    """As by --max-pixels: they are not stretched, and have a position all the same."""
    tower = seeing.tower(seeing.save("qwen3-vl", tmp_path))
    made = SEEING["qwen3-vl"].preparer(tower, SEEING["qwen3-vl"].settings)
    Gallery(made, Sources(hosts=(), root=None), most_pixels=10**6).bound(56 * 56, "cpu")
    assert made.prepare(picture(5, 5)).length == 1 and made.prepare(picture(90, 5)).length == 3
