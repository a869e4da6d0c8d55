"""A vocabulary of bytes that has Whisper's tokens, and sounds."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sapwood.hub.files import ModelFiles
from sapwood.speech.audio import Audio
from sapwood.speech.vocabulary import SpeechVocabulary, speech_vocabulary
from sapwood.text import TextModel

NAMES = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|pt|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
SIZE = 256 + len(NAMES) + 1501


class Bytes:
    """Each byte is a token."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return {name: 256 + at for at, name in enumerate(NAMES)}

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        if "<|endoftext|>" in text:
            before, _, behind = text.partition("<|endoftext|>")
            return [*before.encode(), 256, *behind.encode()]
        return list(text.encode())

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return bytes(id for id in ids if id < 256).decode(errors="replace")


def made() -> SpeechVocabulary:
    found = speech_vocabulary(Bytes(), vocab_size=SIZE)
    assert found is not None
    return found


VOCABULARY = made()


def ids(text: str) -> list[int]:
    return list(text.encode())


def mark(seconds: float) -> int:
    return VOCABULARY.first_mark + round(seconds / 0.02)


def noise(seconds: float) -> Audio:
    draw = np.random.default_rng(0)
    return Audio(np.int16(draw.normal(0, 3000, int(16000 * seconds)).clip(-32000, 32000)))


def make_text(directory: Path) -> TextModel:
    """A real text side around the same vocabulary."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    others = (byte for byte in range(256) if byte not in printed)
    signs = {byte: chr(byte) for byte in printed} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={sign: byte for byte, sign in signs.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(NAMES))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"model_type": "whisper", "vocab_size": SIZE, "num_mel_bins": 80, "eos_token_id": VOCABULARY.end}
    return TextModel.load(ModelFiles("whisper", directory, "hf", config, {}))


def wav(audio: Audio) -> bytes:
    """The recording as a file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(audio.samples.tobytes())
    return out.getvalue()
