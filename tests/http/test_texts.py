"""Routes of models that read, against real servers: what comes is what the model computes, official clients take it, and what is wrong is told."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import openai
import pytest

from sapwood.text import TextModel
from tests import models, readers
from tests.http.conftest import Server
from tests.readers import write_words
from tests.waiting import SECONDS

TEXTS = ["the cat sits outside", "a dog", "the cat sits outside, and a dog sleeps beside it"]
CLOSE = 1e-4


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = models.save("bert", tmp_path_factory.mktemp("bert"))
    write_words(path)
    (path / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]))  # fmt: skip
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    return path


@pytest.fixture(scope="module")
def reader(bert: Path) -> Iterator[Server]:
    server = Server(bert, "--served-model-name", "bert", "--threads", "1")
    yield server
    assert server.stop() == 0, server.output


@pytest.fixture(scope="module")
def words(bert: Path) -> TextModel:
    from sapwood.hub.files import open_files

    return TextModel.load(open_files(bert, name="bert"))


def wanted(words: TextModel, text: str) -> np.ndarray:
    mean = readers.states("bert", words.encode(text)).mean(0).numpy()
    return mean / np.linalg.norm(mean)


def test_openai_embeds(reader: Server, words: TextModel) -> None:
    """Numbers and base64, which it asks for by itself, of texts and of tokens; and their beginnings."""
    client = openai.OpenAI(base_url=f"{reader.url}/v1", api_key="none", timeout=SECONDS, max_retries=0)
    expected = [wanted(words, text) for text in TEXTS]
    ids = [words.encode(text) for text in TEXTS]
    for fields in ({"input": TEXTS}, {"input": TEXTS, "encoding_format": "float"}, {"input": ids}):
        reply = client.embeddings.create(model="bert", **fields)
        np.testing.assert_allclose([one.embedding for one in reply.data], expected, atol=CLOSE)
        assert [one.index for one in reply.data] == [0, 1, 2] and reply.object == "list"
        assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(map(len, ids))
    short = client.embeddings.create(model="bert", input=ids[1], dimensions=16).data[0].embedding
    np.testing.assert_allclose(short, expected[1][:16] / np.linalg.norm(expected[1][:16]), atol=CLOSE)


def test_other_dialects_embed(reader: Server, words: TextModel) -> None:
    expected = [wanted(words, text) for text in TEXTS]
    client = ollama.Client(reader.url, timeout=SECONDS)
    found = client.embed("bert", TEXTS)
    np.testing.assert_allclose(found.embeddings, expected, atol=CLOSE)
    assert found.prompt_eval_count == sum(len(words.encode(text)) for text in TEXTS)
    np.testing.assert_allclose(client.embeddings("bert", TEXTS[0]).embedding, expected[0], atol=CLOSE)
    assert client.embed("bert", "").embeddings == []
    assert client.show("bert").capabilities == ["embedding"]
    np.testing.assert_allclose(reader.post("/embed", json={"inputs": TEXTS}).json(), expected, atol=CLOSE)
    pooled = reader.post("/pooling", json={"input": TEXTS[0], "normalize": False, "pooling": "cls"}).json()
    first = readers.states("bert", words.encode(TEXTS[0]))[0]
    np.testing.assert_allclose(pooled["data"][0]["data"], first, atol=CLOSE)


def test_pairs_are_scored_by_their_vectors(reader: Server, words: TextModel) -> None:
    query, *documents = (wanted(words, text) for text in TEXTS)
    cosines = [float(query @ document) for document in documents]
    told = reader.post("/v1/score", json={"text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()
    np.testing.assert_allclose([one["score"] for one in told["data"]], cosines, atol=CLOSE)
    ranked = reader.post("/v1/rerank", json={"query": TEXTS[0], "documents": [*TEXTS[1:]], "top_n": 1}).json()
    (best,) = ranked["results"]
    assert best["index"] == int(np.argmax(cosines)) and best["document"] == {"text": TEXTS[1 + best["index"]]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "says"),
    [
        ("/v1/embeddings", {}, 400, "input", "missing"),
        ("/v1/embeddings", {"input": []}, 400, "input", "empty"),
        ("/v1/embeddings", {"input": ["a", 1]}, 400, "input", "mix"),
        ("/v1/embeddings", {"input": [[1], []]}, 400, "input", "empty"),
        ("/v1/embeddings", {"input": [7_000_000]}, 400, "input", "7000000"),
        ("/v1/embeddings", {"input": "a " * 200}, 400, "input", "64 maximum"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, 400, "input", "2048"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions", "64"),
        ("/v1/embeddings", {"input": "a", "dimensions": 65}, 400, "dimensions", "64"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, 400, "encoding_format", "int8"),
        ("/v1/embeddings", {"input": "a", "prompt_name": "query"}, 400, "prompt_name", "query"),
        ("/v1/embeddings", {"input": "a", "model": "other"}, 404, "model", "other"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 999}, 400, "truncate_prompt_tokens", "64"),
        ("/v1/rerank", {"query": "a"}, 400, "documents", "missing"),
        ("/v1/rerank", {"query": "a", "documents": []}, 400, "documents", "empty"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n", "1"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, 400, "text_1", "as many"),
        ("/v1/score", {"text_1": "a"}, 400, "text_2", "missing"),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [5]}, 400, "model", "generates"),
        ("/classify", {"input": "a"}, 400, "model", "classifier"),
        ("/v1/completions", {"prompt": "a"}, 400, "model", "/v1/embeddings"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, 400, "model", "/v1/embeddings"),
        ("/generate", {"text": "a"}, 400, "model", "/v1/embeddings"),
    ],
)
def test_what_cannot_be_is_told(
    reader: Server, path: str, body: dict[str, Any], status: int, param: str, says: str
) -> None:
    reply = reader.post(path, json=body)
    told = reply.json()["error"]
    assert (reply.status_code, told["param"]) == (status, param) and says in told["message"], told


def test_long_texts_are_cut_off_if_asked_for(reader: Server, words: TextModel) -> None:
    """Their frame is kept."""
    body = {"input": ["a " * 200], "truncate_prompt_tokens": 10, "normalize": False}
    reply = reader.post("/v1/embeddings", json=body).json()
    ids = words.encode("a " * 200)
    states = readers.states("bert", [*ids[:9], ids[-1]])
    np.testing.assert_allclose(reply["data"][0]["embedding"], states.mean(0), atol=CLOSE)
    assert reply["usage"]["prompt_tokens"] == 10
    assert len(ollama.Client(reader.url, timeout=SECONDS).embed("bert", "a " * 200).embeddings[0]) == 64


def test_one_who_writes_reads_too(server: Server) -> None:
    """By the state of the last token; and says how likely labels are behind texts."""
    one, other = (
        server.post("/v1/embeddings", json={"input": "What is it?", "encoding_format": kind}).json()["data"][0]
        for kind in ("float", "base64")
    )
    decoded = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
    np.testing.assert_allclose(one["embedding"], decoded, atol=1e-6)
    assert len(decoded) == 64 and abs(float(np.linalg.norm(decoded)) - 1) < 1e-5
    labels = [65, 66, 67]
    body = {"query": "Is it? ", "items": ["yes", "no"], "label_token_ids": labels, "apply_softmax": True}
    told = server.post("/v1/score", json=body).json()
    for item, scores in zip(body["items"], told["scores"], strict=True):
        asked = {
            "prompt": f"{body['query']}{item}",
            "max_tokens": 1,
            "logprobs": 0,
            "logprob_token_ids": labels,
            "temperature": 0,
        }
        (choice,) = server.post("/v1/completions", json=asked).json()["choices"]
        named = choice["logprobs"]["top_logprobs"][0]
        likely = np.exp([named.get(chr(label + 33), -np.inf) for label in labels])
        assert abs(sum(scores) - 1) < 1e-5
        np.testing.assert_allclose(scores, likely / likely.sum(), atol=1e-5)
    reply = server.post(
        "/v1/rerank", json={"query": "Is it?", "documents": ["yes", {"text": "no"}], "return_documents": False}
    )
    results = reply.json()["results"]
    assert sorted(one["index"] for one in results) == [0, 1] and "document" not in results[0]
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]
