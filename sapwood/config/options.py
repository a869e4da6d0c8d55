"""The options, as frozen dataclasses.

A field's metadata hold its help, its command-line spellings and its choices; `flags` makes the command line from
them. None means 'derive it', and `resolve` does, saying why; of an option that is not `derived` it means none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sapwood.config.adapters import AdapterOptions
from sapwood.config.drafting import SpeculationConfig
from sapwood.config.house import HouseConfig
from sapwood.config.option import option
from sapwood.config.parallel import ParallelConfig
from sapwood.config.sight import SightConfig
from sapwood.config.stores import StoreConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is read."""

    model: str = option(
        "smollm2-135m",
        "a directory, a .gguf file, a hub id, or a short name that `sapwood pull` lists",
        "--model",
        "--model-path",
    )
    tokenizer: str | None = option(
        None,
        "directory or tokenizer.json to use instead of the model's",
        "--tokenizer",
        "--tokenizer-path",
        derived=False,
    )
    revision: str | None = option(None, "branch, tag or commit of a hub id", "--revision", derived=False)
    served_model_name: tuple[str, ...] | None = option(
        None, "the names that clients may use; answers have the first", "--served-model-name", metavar="NAME"
    )
    chat_template: str | None = option(
        None, "a Jinja file or text to use instead of the model's", "--chat-template", derived=False
    )
    apply_template: str = option(
        "auto",
        "how the model is asked to merge an edit: words, tags, auto (as its name shows), or a file with the places",
        "--apply-template",
        metavar="NAME|FILE",
    )
    tool_parser: str = option(
        "auto",
        "how the model writes calls of tools: a family's name, auto (as its template shows), or none",
        "--tool-parser",
        "--tool-call-parser",
        metavar="NAME",
    )
    reasoning_parser: str = option(
        "auto",
        "how the model writes its thoughts: a family's name, auto (as its template shows), or none",
        "--reasoning-parser",
        metavar="NAME",
    )
    model_impl: str = option(
        "auto",
        "whose modules run the model: sapwood's own, transformers', or those where no family is known (auto)",
        "--model-impl",
        choices=("auto", "sapwood", "transformers"),
    )
    load_format: str = option(
        "auto", "dummy: random weights from config.json alone", "--load-format", choices=("auto", "dummy")
    )
    dtype: str = option(
        "auto",
        "what weights and activations are computed in",
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str | None = option(
        None,
        "round plain weights while they are loaded; what a checkpoint has quantised stays as it is",
        "--quantization",
        choices=("fp8", "int8", "int4", "nvfp4"),
        derived=False,
    )
    max_model_len: int | None = option(
        None, "longest prompt plus output, in tokens", "--max-model-len", "--context-length", metavar="TOKENS"
    )


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The KV cache."""

    page_size: int | None = option(None, "tokens per KV page", "--page-size", "--block-size", metavar="TOKENS")
    memory_fraction: float | None = option(
        None,
        "share of the device's memory for weights, activations and KV",
        "--mem-fraction-static",
        "--gpu-memory-utilization",
        metavar="SHARE",
    )
    kv_cache_memory: int | None = option(
        None,
        "bytes of KV cache, instead of what is left (suffixes K, M, G)",
        "--kv-cache-memory",
        "--kv-cache-memory-bytes",
        metavar="BYTES",
    )
    max_total_tokens: int | None = option(
        None, "tokens of KV cache, instead of what is left", "--max-total-tokens", metavar="TOKENS", derived=False
    )
    prefix_caching: bool = option(
        True, "reuse the KV of shared prefixes", "--enable-prefix-caching", off=("--disable-radix-cache",)
    )
    max_encoder_inputs: int | None = option(
        None,
        "inputs of an encoder-decoder that are kept at once, of requests that run and of those that may come again",
        "--max-encoder-inputs",
        metavar="N",
        derived=False,
    )
    max_encoder_len: int | None = option(
        None, "most positions of such an input", "--max-encoder-len", metavar="TOKENS", derived=False
    )
    kv_cache_dtype: str = option(
        "auto",
        "what keys and values are stored in; int8 and fp8_per_token_head with a scale for each position and head",
        "--kv-cache-dtype",
        choices=(
            "auto",
            "float32",
            "bfloat16",
            "float16",
            "fp8_e4m3",
            "fp8",
            "fp8_per_token_head",
            "int8",
            "int8_per_token_head",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """What runs when."""

    max_num_seqs: int | None = option(
        None, "most requests running at once", "--max-num-seqs", "--max-running-requests", metavar="N"
    )
    max_num_batched_tokens: int | None = option(
        None, "most tokens in one step", "--max-num-batched-tokens", "--max-prefill-tokens", metavar="TOKENS"
    )
    chunked_prefill_size: int | None = option(
        None, "most prompt tokens in a step that also decodes", "--chunked-prefill-size", metavar="TOKENS"
    )
    policy: str | None = option(
        None,
        "order of the waiting: first come, priority, longest cached prefix first, or keys in turns",
        "--schedule-policy",
        "--scheduling-policy",
        choices=("fcfs", "priority", "lpm", "fair"),
    )
    max_waiting: int = option(
        4096, "requests that may wait before new ones get 503", "--max-queued-requests", metavar="N"
    )
    depth: int | None = option(
        None,
        "steps in flight before the oldest is read: 0 waits for each, 1 overlaps",
        "--overlap-depth",
        metavar="STEPS",
    )


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where it runs."""

    device: str = option("auto", "auto, cpu, cuda or cuda:N", "--device")
    attention_backend: str = option(
        "auto",
        "which attention kernels: triton, native, cpu, reference, one that a package brings, or auto",
        "--attention-backend",
        metavar="NAME",
    )
    cpu_kernels: str = option(
        "auto",
        "the build of the CPU's own kernels; off computes with PyTorch",
        "--cpu-kernels",
        choices=("auto", "avx512", "avx2vnni", "avx2", "neon", "base", "off"),
    )
    cpu_activations: str = option(
        "int12",
        "what activations are rounded to before quantised weights multiply them; int8 is faster, and less exact",
        "--cpu-activations",
        choices=("int12", "int8"),
    )
    threads: int | None = option(None, "CPU threads of the engine", "--threads", metavar="N")
    cuda_graphs: bool = option(
        True,
        "launch each step as one CUDA graph",
        "--cuda-graphs",
        off=("--enforce-eager", "--disable-cuda-graph"),
    )
    cuda_graph_max_tokens: int | None = option(
        None,
        "largest step that is a CUDA graph",
        "--cuda-graph-max-tokens",
        "--max-cudagraph-capture-size",
        metavar="TOKENS",
    )
    seed: int = option(
        0, "seed of dummy weights and of requests that bring none", "--seed", "--random-seed", metavar="N"
    )


@dataclass(frozen=True, kw_only=True)
class GrammarConfig:
    """Outputs that have to match something."""

    compact_json: bool = option(
        False, "JSON of constrained outputs has no whitespace", "--constrained-json-disable-any-whitespace"
    )
    compile_seconds: float = option(
        2.0,
        "processor time after which a request's schema or grammar is refused",
        "--grammar-compile-seconds",
        metavar="SECONDS",
    )
    jump_forward: bool = option(
        True,
        "tokens that a grammar forces are not drawn one by one",
        "--jump-forward",
        off=("--disable-jump-forward",),
    )


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP front."""

    host: str = option("127.0.0.1", "address to listen on", "--host")
    port: int = option(8000, "port to listen on; 0 takes a free one", "--port")
    uds: str | None = option(
        None, "path of a Unix socket to listen on instead of an address", "--uds", metavar="PATH", derived=False
    )
    ssl_certfile: str | None = option(
        None,
        "certificate (PEM, with its chain): HTTPS; SIGHUP has it read again",
        "--ssl-certfile",
        metavar="FILE",
        derived=False,
    )
    ssl_keyfile: str | None = option(
        None, "the certificate's key, if it is not in the same file", "--ssl-keyfile", metavar="FILE", derived=False
    )
    ssl_keyfile_password: str | None = option(
        None, "what the key is encrypted with", "--ssl-keyfile-password", metavar="TEXT", derived=False
    )
    ssl_ca_certs: str | None = option(
        None,
        "clients must have a certificate that one of these has signed",
        "--ssl-ca-certs",
        metavar="FILE",
        derived=False,
    )
    api_key: str | None = option(
        None,
        "clients must send this key, or one of these (or set SAPWOOD_API_KEY)",
        "--api-key",
        metavar="KEY[,KEY]",
        derived=False,
        several=True,
    )
    api_keys_file: str | None = option(
        None,
        "a TOML or JSON file of keys with names and limits, read again when it changes",
        "--api-keys-file",
        metavar="FILE",
        derived=False,
    )
    admin_api_key: str | None = option(
        None,
        "routes for operators are on, for who sends this key (or set SAPWOOD_ADMIN_API_KEY)",
        "--admin-api-key",
        metavar="KEY",
        derived=False,
    )
    admin_socket: str | None = option(
        None,
        "routes for operators are on, over this Unix socket, which only our user may open",
        "--admin-socket",
        metavar="PATH",
        derived=False,
    )
    metrics_access: str | None = option(
        None,
        "who may read /metrics: all, those with a key, or operators; open, but key with --api-keys-file",
        "--metrics-access",
        choices=("open", "key", "admin"),
        derived=False,
    )
    stable_prefix: str | None = option(
        None,
        "lines that these clients' system prompts change often are moved behind the cached prefix, or left out",
        "--stable-prefix",
        choices=("claude-code", "opencode", "cline", "dates"),
        metavar="NAME[,NAME]",
        derived=False,
        several=True,
    )
    share_prefixes: bool = option(False, "cached prefixes of all keys are shared", "--share-prefixes")
    max_body_bytes: int = option(
        32 << 20, "largest request body (suffixes K, M, G)", "--max-body-bytes", metavar="BYTES"
    )
    max_audio_seconds: float = option(
        3600.0, "longest recording that is transcribed", "--max-audio-seconds", metavar="SECONDS"
    )
    cors_origins: str | None = option(
        None, "comma-separated origins that browsers may call from, or *", "--allowed-origins", derived=False
    )
    page: bool = option(True, "a page for browsers at /: chat, and what the server does", "--page", off=("--no-page",))
    asleep: str = option(
        "wait", "requests to an engine that sleeps wait, or get 503", "--while-asleep", choices=("wait", "refuse")
    )
    drain_seconds: float = option(
        30.0, "how long running requests may finish after SIGTERM", "--drain-timeout", metavar="SECONDS"
    )
    request_seconds: float | None = option(
        None,
        "how long a request may take that asks for no other time",
        "--request-timeout",
        metavar="SECONDS",
        derived=False,
    )
    max_request_seconds: float | None = option(
        None, "the most that a request may ask for", "--max-request-timeout", metavar="SECONDS", derived=False
    )
    watchdog_seconds: float = option(
        300.0,
        "how long a step may last before the engine is taken to hang, killed and started again",
        "--watchdog-timeout",
        metavar="SECONDS",
    )
    max_engine_restarts: int = option(
        3,
        "how often within ten minutes an engine that has died is started again before the server ends",
        "--max-engine-restarts",
        metavar="N",
    )
    thinking_budget: int | None = option(
        None,
        "most tokens of thoughts for requests that give no bound",
        "--thinking-budget",
        metavar="TOKENS",
        derived=False,
    )
    state_dir: str | None = option(
        None,
        "where responses, stored chats, files and batches survive the server; in memory without it",
        "--state-dir",
        metavar="DIR",
        derived=False,
    )
    state_bytes: int = option(
        256 << 20,
        "how much of them is kept; the oldest make room (suffixes K, M, G)",
        "--state-bytes",
        metavar="BYTES",
    )
    incremental_stream: bool = option(
        False,
        "events of a streamed /generate hold what is new instead of the text so far",
        "--incremental-streaming-output",
        "--stream-output",
    )
    log_level: str = option("info", "how much is logged", "--log-level", choices=("debug", "info", "warning", "error"))
    log_format: str = option("text", "lines for people, or JSON for programs", "--log-format", choices=("text", "json"))
    log_requests: bool = option(False, "log one line per request", "--enable-log-requests", "--log-requests")
    otlp_traces_endpoint: str | None = option(
        None,
        "where OpenTelemetry's traces are sent, as OTLP over HTTP: http://localhost:4318/v1/traces",
        "--otlp-traces-endpoint",
        metavar="URL",
        derived=False,
    )
    metrics_compat: str | None = option(
        None,
        "metrics under another engine's names too",
        "--metrics-compat",
        choices=("vllm", "sglang"),
        derived=False,
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration. After `resolve` no field that the engine reads is None."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    stores: StoreConfig = field(default_factory=StoreConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    sight: SightConfig = field(default_factory=SightConfig)
    grammar: GrammarConfig = field(default_factory=GrammarConfig)
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    server: ServerConfig = field(default_factory=ServerConfig)
    house: HouseConfig = field(default_factory=HouseConfig)
