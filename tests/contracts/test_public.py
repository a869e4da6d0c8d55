"""What users rely on: names, flags, commands. A change here is a change for them, and is to be made on purpose."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import sapwood
from sapwood.cli import COMMANDS
from sapwood.config.flags import add_flags, options

ROOT = Path(__file__).parents[2]

NAMES = """
    AsyncLLM Chunk Config ConfigError EngineDead Generation GenerationFailed Grammar LLM ModelError Output Overloaded RequestError
    SamplingParams SapwoodError UserError __version__
""".split()

FLAGS = """
    --uds --ssl-certfile --ssl-keyfile --ssl-keyfile-password --ssl-ca-certs --max-engine-restarts --watchdog-timeout --request-timeout --max-request-timeout
    --incremental-streaming-output --stream-output --page
    --admin-api-key --admin-socket --api-keys-file --metrics-access --share-prefixes --stable-prefix
    --allowed-origins --api-key --apply-template --attention-backend --block-size --chat-template --chunked-prefill-size
    --constrained-json-disable-any-whitespace --context-length --cpu-activations --cpu-kernels --cuda-graph-max-tokens --cuda-graphs --device --drain-timeout --dtype --enable-log-requests
    --enable-prefix-caching --gpu-memory-utilization --host --kv-cache-dtype --kv-cache-memory --kv-cache-memory-bytes
    --grammar-compile-seconds --jump-forward --speculation --speculative-algorithm --speculative-config
    --speculative-model --speculative-draft-model-path --speculative-prefill --speculative-prefill-model --num-speculative-tokens --speculative-num-draft-tokens --prompt-lookup-min --load-format --log-format --log-level --log-requests --max-audio-seconds --max-body-bytes --max-cudagraph-capture-size --max-model-len
    --max-num-batched-tokens --max-num-seqs --max-prefill-tokens --max-queued-requests --max-running-requests
    --max-total-tokens --mem-fraction-static --metrics-compat --model --model-impl --model-path --otlp-traces-endpoint --overlap-depth --page-size --port --quantization --random-seed
    --reasoning-parser --revision --state-bytes --state-dir --schedule-policy --scheduling-policy --seed --served-model-name --tensor-parallel-size --tp --tp-size -tp --enable-expert-parallel --expert-parallel-size --ep --ep-size --pipeline-parallel-size --pp --pp-size -pp --data-parallel-size --dp --dp-size -dp --data-parallel-rank --thinking-budget --threads --tokenizer --tokenizer-path
    --tool-call-parser --tool-parser
    --kv-store --kv-store-write --hicache-write-policy --kv-offloading-size --hicache-size --enable-hierarchical-cache
    --max-encoder-inputs --max-encoder-len
    --kv-transfer-config --preload-cache --kv-events-config
    --role --disaggregation-mode --transfer-host --transfer-port --disaggregation-bootstrap-port --transfer-peer --transfer-memory --transfer-seconds
    --models --max-loaded-models --idle-models --keep-alive --model-wait --while-asleep
    --language-model-only --allowed-local-media-path --allowed-media-domains --encoder-cache-host-memory --encoder-cache-memory --max-image-pixels --max-pixels
    --enable-lora --lora-modules --lora-paths --lora-dir --max-loras --max-loras-per-batch --max-lora-rank --max-cpu-loras --max-loaded-loras
""".split()

OFF_FLAGS = """
    --no-language-model-only --no-incremental-streaming-output --no-stream-output --no-page
    --disable-cuda-graph --disable-jump-forward --disable-radix-cache --enforce-eager
    --no-constrained-json-disable-any-whitespace --no-cuda-graphs --no-jump-forward --no-enable-log-requests
    --no-enable-hierarchical-cache --no-hierarchical-cache
    --no-enable-lora --no-lora --no-enable-expert-parallel --no-expert-parallel --no-share-prefixes --no-enable-prefix-caching --no-log-requests --no-prefix-caching
""".split()


def test_public_names() -> None:
    assert sorted(sapwood.__all__) == sorted(NAMES)
    assert all(getattr(sapwood, name) is not None for name in NAMES)


def test_commands() -> None:
    assert list(COMMANDS) == [
        "serve",
        "chat",
        "run",
        "transcribe",
        "bench",
        "pull",
        "explain",
        "doctor",
        "top",
        "apply",
        "quantize",
        "route",
        "route-eval",
        "fleet",
        "cache",
    ]


def test_flags_of_serve() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings} - {"--config"}
    assert flags == set(FLAGS) | set(OFF_FLAGS)
    assert len(options()) <= 115


BENCH_FLAGS = {
    "throughput": "--workloads --scale --max-seconds",
    "latency": "--batch --input-len --output-len --max-seconds",
    "serve": """--url --spawn --engine --model --api-key --rate --burstiness --concurrency --sweep --loop --num-requests
        --max-seconds --warm-up --timeout --seed --slo --traffic --input-len --output-len --length-spread --prefix-len
        --groups --turns --as-text --vocab-size --temperature --no-ignore-eos --extra-body""",
    "host": "--sequences --steps --input-len --prefix-len --page-size --overlap-depth",
}


def test_flags_of_bench() -> None:
    parser = argparse.ArgumentParser()
    COMMANDS["bench"].add_arguments(parser)
    (kinds,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert kinds.keys() == BENCH_FLAGS.keys()
    for name, sub in kinds.items():
        own = {flag for action in sub._actions for flag in action.option_strings if action.dest[:7] != "option_"}
        assert own - {"-h", "--help", "--config"} == {
            *BENCH_FLAGS[name].split(), "--json", "--compare", "--plot", "--repeat",
        }  # fmt: skip


def test_every_option_has_help_and_one_owner() -> None:
    names = [name for option in options() for name in option.names]
    assert len(names) == len(set(names))
    assert all(option.help and not option.help.endswith(".") for option in options())


def test_few_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert len(project["dependencies"]) <= 14


def test_the_readme_names_commands_that_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text("utf-8"), (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake (\w+)`", readme)) | set(re.findall(r"^make (\w+)", readme, re.MULTILINE))
    assert {"demo", "serve", "test"} <= named <= targets
    assert set(re.findall(r"^sapwood (\w+)", readme, re.MULTILINE)) <= set(COMMANDS)
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text("utf-8")


def test_the_readme_s_files_exist() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (ROOT / link).exists(), link
