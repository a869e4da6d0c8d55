"""What a request brings for an encoder: how it travels, what names it, where it stands among the tree's keys."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from sapwood.base.errors import RequestError
from sapwood.base.media import Array, Media, Span, check_kinds, check_spans, keyed
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Lists, Sharing, Submit


def image(seed: int = 0, length: int = 6) -> Media:
    pixels = np.random.default_rng(seed).random((3, 4, 5), np.float32)
    return Media.of("image", {"pixels": pixels, "grid": np.array([2, 3], np.int32)}, length)


def request(prompt: list[int], media: list[Media], spans: list[Span], **options: object) -> Request:
    tokens = np.array(prompt, np.int32)
    return Request(1, tokens, SamplingParams(), limit=99, media=media, spans=spans, **options)  # type: ignore[arg-type]


def test_arrays_travel() -> None:
    one = image()
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Media)
    assert back == one
    assert back.arrays["pixels"].numpy().shape == (3, 4, 5)
    np.testing.assert_array_equal(back.arrays["pixels"].numpy(), one.arrays["pixels"].numpy())
    with pytest.raises(ValueError, match="complex64"):
        Array.of(np.zeros(1, np.complex64))
    with pytest.raises(ValueError, match="no array"):
        Array("object", (1,), b"12345678").numpy()
    with pytest.raises(ValueError, match="reshape"):
        Array("float32", (2,), b"1234").numpy()


def test_a_digest_names_the_content() -> None:
    assert image(0).digest == image(0).digest and len(image(0).digest) == 16
    pixels = image(0).arrays["pixels"].numpy()
    others = [
        image(1),
        Media.of("image", {"pixels": pixels}, 6),
        Media.of("image", {"pixel": pixels, "grid": np.array([2, 3], np.int32)}, 6),
        Media.of("image", {"pixels": pixels.reshape(4, 3, 5), "grid": np.array([2, 3], np.int32)}, 6),
        Media.of("video", {"pixels": pixels, "grid": np.array([2, 3], np.int32)}, 6),
    ]
    assert len({image(0).digest, *(other.digest for other in others)}) == 6


def test_keys_follow_from_content_and_offset() -> None:
    tokens = np.arange(10, 20, dtype=np.int32)
    keys = keyed(tokens, [image()], [Span(2, 3, 0)])
    assert keys[[0, 1, 5, 9]].tolist() == [10, 11, 15, 19] and (keys[2:5] < 0).all()
    assert tokens.tolist() == list(range(10, 20)), "what was given stays"
    elsewhere = keyed(tokens, [image(1), image()], [Span(0, 3, 0), Span(4, 6, 1)])
    assert elsewhere[4:7].tolist() == keys[2:5].tolist(), "the same image, wherever it stands"
    assert elsewhere[:3].tolist() != keys[2:5].tolist()
    later = keyed(tokens, [image()], [Span(1, 4, 0, offset=2)])
    assert later[1:5].tolist() == elsewhere[6:10].tolist()
    assert len(set(elsewhere.tolist())) == 10


def test_a_request_knows_keys_and_tokens() -> None:
    one = request([5, 6, 6, 7], [image()], [Span(1, 2, 0)], namespace="a\0b")
    assert (one.tokens < 0).tolist() == [False, True, True, False] and one.namespace == "a\0b"
    assert one.spelled.tolist() == [5, 6, 6, 7]
    one.tokens = np.append(one.tokens, np.int32(9))  # as after a stay in a slot
    assert one.spelled.tolist() == [5, 6, 6, 7, 9] and one.prompt_len == 4
    assert one.tokens[1] < 0


def test_what_all_tokens_see_is_in_the_namespace() -> None:
    one, same, other = (request([5], [image(seed)], [], namespace="a\0b") for seed in (0, 0, 1))
    assert one.namespace == same.namespace != other.namespace
    assert one.namespace.endswith("a\0b") and one.namespace != "a\0b"
    assert one.tokens.tolist() == [5] == one.spelled.tolist()


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([Span(0, 1, 1)], "media 1"),
        ([Span(0, 1, -1)], "media -1"),
        ([Span(7, 4, 0)], "leaves"),
        ([Span(-1, 2, 0)], "leaves"),
        ([Span(2, 0, 0)], "leaves"),
        ([Span(3, 2, 0), Span(4, 1, 0)], "overlaps"),
        ([Span(3, 2, 0), Span(0, 1, 0)], "overlaps"),
        ([Span(0, 7, 0)], "wants more"),
        ([Span(0, 6, 0, offset=1)], "wants more"),
        ([Span(0, 6, 0, offset=-1)], "wants more"),
    ],
)
def test_spans_that_cannot_be(spans: list[Span], why: str) -> None:
    check_spans([image()], [Span(0, 6, 0), Span(7, 2, 0, offset=4)], prompt_len=10)
    with pytest.raises(ValueError, match=why):
        check_spans([image()], spans, prompt_len=10)


def test_media_without_an_encoder_are_refused() -> None:
    check_kinds([image()], ("audio", "image"))
    with pytest.raises(RequestError, match="no image: its encoder takes audio"):
        check_kinds([image()], ("audio",))
    with pytest.raises(RequestError, match="it has no encoder"):
        check_kinds([image()], ())


def test_outputs_of_one_body_share_their_media() -> None:
    message = Submit(1, [5, 6], SamplingParams(), media=[image()], spans=[Span(0, 1, 0)])
    lists = Lists.of(message)
    assert lists is not None and lists.media == [image()]
    sharing = Sharing.of(message)
    assert sharing.submit.media == [] and sharing.whole(lists) == message
    assert Lists.of(Submit(1, [5, 6], SamplingParams())) is None
