"""Which paths are carried on, and in whose words errors are told there."""

from __future__ import annotations

from sapwood.server.anthropic.errors import envelope as anthropic_envelope
from sapwood.server.errors import Envelope, openai_envelope
from sapwood.server.ollama.errors import envelope as ollama_envelope

_OPENAI = (
    "chat/completions",
    "completions",
    "responses",
    "responses/input_tokens",
    "embeddings",
    "rerank",
    "score",
    "apply",
    "audio/transcriptions",
    "audio/translations",
    "audio/speech",
    "images/generations",
    "moderations",
    "chat/completions/render",
    "completions/render",
)
CARRIED = (
    *(f"/v1/{name}" for name in _OPENAI),
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v2/rerank",
    "/rerank",
    "/score",
    "/classify",
    "/pooling",
    "/embed",
    "/embed_all",
    "/embed_sparse",
    "/predict",
    "/similarity",
    "/encode",
    "/generate",
    "/generate_stream",
    "/inference/v1/generate",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
)
"""What is asked with a body and answered from it alone, at Sapwood's servers and at those of vLLM, SGLang, Ollama, text-embeddings-inference and
OpenAI. What a server keeps (files, batches, stored answers) only that one knows."""


def envelope_of(path: str) -> Envelope:
    """How errors are worded on a path."""
    if path.startswith("/v1/messages"):
        return anthropic_envelope
    return ollama_envelope if path.startswith("/api/") else openai_envelope


def last_words(path: str, content_type: str, told: bytes) -> bytes:
    """An error in the middle of a stream of that type."""
    if "event-stream" in content_type:
        return (b"event: error\n" if path.startswith("/v1/messages") else b"") + b"data: " + told + b"\n\n"
    return told + b"\n"
