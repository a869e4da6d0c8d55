"""Texts that `LLM` reads: by the models' own files and classifiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sapwood import LLM, RequestError
from tests import models, readers
from tests.readers import write_words

CLOSE = 1e-4


def test_pairs_and_labels_by_a_classifier(tmp_path: Path) -> None:
    path = models.save("bert-pairs", tmp_path / "pairs")
    write_words(path)
    llm = LLM(str(path), threads=1)
    scores = llm.score("the cat", ["a dog", "the cat sits outside"])
    for text, score in zip(("a dog", "the cat sits outside"), scores, strict=True):
        tokens, second = llm.text.encode_pair("the cat", text)
        types = [int(place >= second) for place in range(len(tokens))]
        wanted = 1 / (1 + np.exp(-readers.scores("bert-pairs", tokens, types).item()))
        assert second > 0 and abs(score - wanted) < CLOSE
    with pytest.raises(RequestError, match="too long"):
        llm.score("the cat", ["a " * 300])
    assert len(llm.score("the cat", ["a " * 300], truncate=True)) == 1
    path = models.save("bert-labels", tmp_path / "labels")
    write_words(path)
    llm = LLM(str(path), threads=1)
    (told,) = llm.classify("the cat sits outside")
    likely = readers.scores("bert-labels", llm.text.encode("the cat sits outside")).softmax(0)
    np.testing.assert_allclose([*told.scores.values()], likely, atol=CLOSE)
    assert [*told.scores] == ["bad", "good", "so so"] and told.label == [*told.scores][int(likely.argmax())]
    with pytest.raises(RequestError, match="generates"):
        llm.generate("the cat")


def test_a_real_model_knows_what_sentences_have_in_common(minilm: Path) -> None:
    """The cosines are those that its authors' library prints for these."""
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = np.stack([one.vector for one in LLM(str(minilm), threads=1).embed(sentences)])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(
        vectors @ vectors.T, [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]], atol=2e-4
    )
