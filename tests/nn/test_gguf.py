"""GGUF files: the logits of the model that they were written from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from sapwood.arch import declare
from sapwood.base.errors import ModelError
from sapwood.hub.files import open_files
from sapwood.hub.gguf import open_gguf
from sapwood.hub.metadata import config_of
from tests import models
from tests.nn import forward, ggufs

TOKENS = np.random.default_rng(1).integers(3, 199, size=60).tolist()


@pytest.mark.parametrize(
    "family", ["llama", "llama-tied", "llama-linear", "llama-yarn", "qwen2", "qwen3", "phi3", "qwen2-moe", "qwen3-moe"]
)
def test_float32_file_has_the_logits_of_its_model(family: str, tmp_path: Path) -> None:
    model = forward.load(ggufs.write(family, tmp_path / "model.gguf"))
    assert (forward.logits(model, TOKENS) - models.logits(family, TOKENS)).abs().max() < 1e-4


def test_gemma3(tmp_path: Path) -> None:
    """With the layers, scale and ropes that the format implies, as its metadata cannot say otherwise."""
    path = ggufs.write("gemma3", tmp_path / "model.gguf", attention__sliding_window_pattern=3)
    config = config_of(open_gguf(path))
    assert config["layer_types"] == ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"]
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    # The query scale follows from the head size, where the tiny model has another: compare with it set back.
    files = open_files(path, name="gemma3")
    files.config["query_pre_attn_scalar"] = 24
    assert (forward.logits(forward.load(files), TOKENS) - models.logits("gemma3", TOKENS)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_matrices(kind: str, tmp_path: Path) -> None:
    """The embedding that is loaded is the one that was written, within half a step of the format."""
    path = ggufs.write("llama-tied", tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType[kind])
    model = forward.load(path)
    expected = models.make("llama-tied").model.embed_tokens.weight.detach()
    steps = {"Q8_0": 1 / 127, "Q4_1": 2 / 15, "F16": 2**-10, "BF16": 2**-7}
    error = (model.embed.weight - expected).abs().max()
    assert 0 < error <= 0.6 * steps[kind] * expected.abs().max()
    queries = models.make("llama-tied").model.layers[0].self_attn.q_proj.weight.detach()
    loaded = model.blocks[0].mixer.qkv.weight[: len(queries)]
    assert (loaded - queries).abs().max() <= 0.6 * steps[kind] * queries.abs().max()


def test_divisors_of_llama3(tmp_path: Path) -> None:
    """Llama 3.1's scaling is a tensor in the file, and its rule is found from it."""
    from sapwood.arch.rope import llama3_divisor
    from sapwood.arch.scaling import Llama3Scaling

    rule = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    divisors = np.array([llama3_divisor(5e5 ** (-i / 32), rule) for i in range(32)], np.float32)
    for found, tensor in ((True, divisors), (False, divisors * np.linspace(1, 2, 32, dtype=np.float32))):
        path = tmp_path / f"{found}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for add, value in (
            (writer.add_context_length, 1024),
            (writer.add_embedding_length, 256),
            (writer.add_block_count, 1),
            (writer.add_feed_forward_length, 256),
            (writer.add_head_count, 4),
            (writer.add_layer_norm_rms_eps, 1e-5),
            (writer.add_rope_freq_base, 5e5),
        ):
            add(value)
        writer.add_tensor("token_embd.weight", np.zeros((10, 256), np.float32))
        writer.add_tensor("rope_freqs.weight", tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if found:
            scaling = config_of(open_gguf(path))["rope_scaling"]
            assert (scaling["rope_type"], scaling["factor"]) == ("llama3", 32.0)
        else:
            with pytest.raises(ModelError, match="rope_freqs"):
                config_of(open_gguf(path))


def test_metadata_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["<s>", "a", "é", "日本"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_scores([0.0, -1.5, 2.25, 3.0])
    writer.add_bool("flag", True)
    writer.add_int64("long", -(2**40))
    writer.add_float64("double", 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = open_gguf(path).metadata
    assert metadata["tokenizer.ggml.tokens"] == ["<s>", "a", "é", "日本"]
    assert metadata["tokenizer.ggml.token_type"].tolist() == [3, 1, 1, 1]
    assert metadata["tokenizer.ggml.scores"].tolist() == [0.0, -1.5, 2.25, 3.0]
    assert (metadata["flag"], metadata["long"], metadata["double"]) == (True, -(2**40), 0.1)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = ggufs.write("llama", tmp_path / "model.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [0, 3, 4, 8, 20, 24, *range(25, len(whole) - 64, len(whole) // 40), len(whole) - 64]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            open_gguf(cut)


def test_a_file_with_nonsense_inside_is_refused_or_read(tmp_path: Path) -> None:
    """Flipped bytes of the header never escape as anything but a ModelError."""
    whole = bytearray(ggufs.write("llama", tmp_path / "model.gguf").read_bytes())
    random = np.random.default_rng(0)
    bad, refused = tmp_path / "bad.gguf", 0
    for _ in range(150):
        changed = bytearray(whole)
        for at in random.integers(0, 2000, size=3):
            changed[at] = random.integers(256)
        bad.write_bytes(changed)
        try:
            config_of(open_gguf(bad))
        except ModelError:
            refused += 1
    assert refused > 50


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    path = ggufs.write("llama", tmp_path / "model.gguf", leave_out="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        forward.load(path)


@pytest.mark.parametrize(
    ("key", "value"), [("attention.head_count", "many"), ("attention.head_count", 0), ("context_length", "long")]
)
def test_metadata_of_the_wrong_type(key: str, value: int | float | str, tmp_path: Path) -> None:
    path = ggufs.write("qwen3", tmp_path / "model.gguf", skip=key, **{key.replace(".", "__"): value})
    with pytest.raises(ModelError, match=key):
        declare(config_of(open_gguf(path)))


TYPE, FACTOR, ORIGINAL = "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"


def scaling(path: Path, family: str, skip: tuple[str, ...], **metadata: float | str) -> object:
    return config_of(open_gguf(ggufs.write(family, path / "model.gguf", skip=skip, **metadata)))["rope_scaling"]


def test_scaling_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    assert scaling(tmp_path, "llama-linear", (TYPE,)) == linear, "a factor without a type"
    assert scaling(tmp_path, "llama-linear", (TYPE, FACTOR), rope__scale_linear=4.0) == linear, "the older key"
    assert scaling(tmp_path, "llama-linear", (FACTOR,), rope__scaling__factor=1.0) is None
    assert scaling(tmp_path, "llama-linear", (FACTOR,), rope__scaling__factor=0.0) is None
    assert scaling(tmp_path, "llama-linear", (TYPE,), rope__scaling__type="none") is None
    yarn = scaling(tmp_path, "llama-yarn", (ORIGINAL,), rope__scaling__attn_factor=0.5)
    assert isinstance(yarn, dict)
    assert yarn["original_max_position_embeddings"] == 256, "the context length"
    assert yarn["attention_factor"] == pytest.approx(0.5 * 1.1386294), "beside YaRN's own"


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "logit_scale", 0.5),
        ("llama", "attention.clamp_kqv", 8.0),
        ("llama", "attention.causal", False),
        ("llama", "rope.scaling.attn_factor", 1.5),
        ("llama", "use_parallel_residual", True),
        ("llama", "tensor_data_layout", "reference"),
        ("qwen2", "attention.sliding_window", 8),
        ("qwen2", "final_logit_softcapping", 30.0),
        ("llama-yarn", "rope.scaling.yarn_log_multiplier", 0.1),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("llama", "expert_count", 8),
        ("llama", "rope.dimension_count", "all"),
    ],
)
def test_keys_that_change_the_mathematics_are_refused_by_name(
    family: str, key: str, value: float | str, tmp_path: Path
) -> None:
    architecture = family.split("-")[0]
    path = ggufs.write(family, tmp_path / "model.gguf", skip=key, **{key.replace(".", "__"): value})
    with pytest.raises(ModelError, match=rf"{architecture}\.{key}: "):
        config_of(open_gguf(path))


def test_keys_that_change_nothing_pass(tmp_path: Path) -> None:
    harmless: dict[str, int | float | str] = {
        "attention__causal": True,
        "attention__layer_norm_epsilon": 1e-5,
        "expert_used_count": 0,
        "logit_scale": 0.0,
        "pooling_type": 3,
        "rope__scaling__attn_factor": 1.0,
        "rope__scaling__finetuned": True,
        "tensor_data_layout": "Meta AI original pth",
        "vocab_size": 7,
    }
    assert config_of(open_gguf(ggufs.write("llama", tmp_path / "model.gguf", **harmless)))["vocab_size"] == 199


def test_files_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    whole = ggufs.write("llama", tmp_path / "model.gguf").read_bytes()
    odd = tmp_path / "odd.gguf"
    for start, says in (
        (b"GGUF\1\0\0\0", r"has GGUF version 1; 2 and 3 can be read: convert it anew\.$"),
        (b"GGUF\0\0\0\3", r"is written for big-endian machines.*convert it anew\.$"),
        (b"GGML\3\0\0\0", r"is not a GGUF file\.$"),
        (b"version https://git-lfs", "git lfs pull"),
    ):
        odd.write_bytes(start + whole[len(start) :])
        with pytest.raises(ModelError, match=says) as caught:
            open_gguf(odd)
        assert "corrupt" not in str(caught.value)


def test_a_part_of_a_split_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for architecture in ("llama", ""):  # only the first part has the model's metadata
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_uint16("split.count", 2)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ModelError, match=r"one of 2 parts of a split GGUF file.*llama-gguf-split --merge"):
            config_of(open_gguf(path))


def test_unknown_architecture(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"general\.architecture = 'mamba'"):
        config_of(open_gguf(path))


# A question after a system message, and transformers' greedy continuation from the same file in float32.
PROMPT = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
]  # fmt: skip
CONTINUATION = [
    504, 3575, 282, 4649, 314, 7042, 30, 2, 198, 2, 1, 9690, 198, 2, 198, 1, 4093, 198, 57, 5248, 3946, 288, 7198, 253,
]  # fmt: skip


def test_the_real_model_continues_as_transformers_does(smollm2: Path) -> None:
    likeliest = forward.logits(forward.load(smollm2), PROMPT + CONTINUATION).argmax(-1)
    assert likeliest[len(PROMPT) - 1 : -1].tolist() == CONTINUATION


def test_where_a_tensor_is_in_the_file(tmp_path: Path) -> None:
    file = open_gguf(ggufs.write("llama", tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType.Q8_0))
    whole = file.path.read_bytes()
    for tensor in file.tensors.values():
        assert whole[slice(*file.span(tensor))] == tensor.data.tobytes()
