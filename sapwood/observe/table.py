"""Every metric by name: what it is, what it counts, and by which labels. docs/metrics.md says the same."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]

_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
_QUEUE = (0.001, 0.005, 0.02, *_FIRST_TOKEN[4:])
_INTER_TOKEN = (0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 5.0)
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
_LENGTH = tuple(float(2**n) for n in range(4, 21))


class Named(NamedTuple):
    """One metric. Samples of a counter end in `_total`; `buckets` are a histogram's, where the engine does not bring them."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


FRONT = {
    named.name: named
    for named in (
        Named("sapwood_model", "gauge", "1, labelled with the served model.", ("model",)),
        Named("sapwood_build_info", "gauge", "1, labelled with what runs.", ("version", "python")),
        Named("sapwood_requests", "counter", "HTTP requests by endpoint and status.", ("endpoint", "status")),
        Named(
            "sapwood_request_seconds",
            "histogram",
            "From a request's arrival to the end of its response.",
            ("endpoint",),
            _REQUEST,
        ),
        Named("sapwood_key_requests", "counter", "HTTP requests by the key's name and status.", ("key", "status")),
        Named("sapwood_key_tokens", "counter", "Tokens of generations by the key's name.", ("key", "kind")),
        Named("sapwood_finished", "counter", "Generations by how they ended.", ("reason",)),
        Named("sapwood_prompt_tokens", "counter", "Prompt tokens of generations."),
        Named(
            "sapwood_cached_prompt_tokens", "counter", "Prompt tokens found in the prefix cache, by where.", ("source",)
        ),
        Named("sapwood_output_tokens", "counter", "Generated tokens."),
        Named("sapwood_generation_prompt_tokens", "histogram", "Prompt tokens of a generation.", buckets=_LENGTH),
        Named(
            "sapwood_generation_output_tokens",
            "histogram",
            "Generated tokens of a generation.",
            buckets=(1.0, 4.0, *_LENGTH),
        ),
        Named(
            "sapwood_time_to_first_token_seconds",
            "histogram",
            "From a generation's submission to its first token.",
            buckets=_FIRST_TOKEN,
        ),
        Named(
            "sapwood_inter_token_seconds",
            "histogram",
            "Between a generation's tokens; tokens that come together share their wait.",
            buckets=_INTER_TOKEN,
        ),
        Named(
            "sapwood_queue_seconds",
            "histogram",
            "From a generation's arrival at the engine to its first step.",
            buckets=_QUEUE,
        ),
        Named(
            "sapwood_prefill_seconds",
            "histogram",
            "From a generation's first step to its first token.",
            buckets=_FIRST_TOKEN,
        ),
        Named(
            "sapwood_decode_seconds",
            "histogram",
            "From a generation's first token to its last.",
            buckets=_REQUEST,
        ),
        Named(
            "sapwood_generation_seconds", "histogram", "From a generation's submission to its end.", buckets=_REQUEST
        ),
        Named("sapwood_tool_calls", "counter", "Calls of tools in outputs by whether they could be read.", ("result",)),
        Named(
            "sapwood_schema_checks",
            "counter",
            "Complete outputs that were checked by keywords which no grammar follows, by what was found.",
            ("result",),
        ),
        Named("sapwood_audio_seconds", "counter", "Seconds of recordings that were transcribed, by task.", ("task",)),
        Named("sapwood_audio_windows", "counter", "Windows of recordings that were listened to."),
        Named("sapwood_audio_tries", "counter", "Transcripts of windows, of which one each is believed."),
    )
}
"""What the front counts of what it sees."""

ENGINE = {
    named.name: named
    for named in (
        Named("sapwood_running", "gauge", "Requests that hold a slot."),
        Named("sapwood_waiting", "gauge", "Requests that wait for a slot."),
        Named("sapwood_pages", "gauge", "KV pages of a group.", ("group", "state")),
        Named(
            "sapwood_engine_info", "gauge", "1, labelled with what computes, and how.", ("device", "dtype", "attention")
        ),
        Named("sapwood_max_model_len", "gauge", "Most tokens of a prompt with its output."),
        Named("sapwood_max_num_seqs", "gauge", "Most requests that run at once."),
        Named("sapwood_page_size", "gauge", "Tokens of a KV page."),
        Named("sapwood_start_seconds", "gauge", "What the parts of the engine's start took.", ("part",)),
        Named("sapwood_engine_up", "gauge", "1 while the engine lives, 0 while there is none."),
        Named(
            "sapwood_engine_restarts", "counter", "How often an engine that had died or hung was followed by another."
        ),
        Named("sapwood_replica_up", "gauge", "1 while one of several engines lives.", ("replica",)),
        Named("sapwood_replica_running", "gauge", "Requests that hold a slot of one of several engines.", ("replica",)),
        Named("sapwood_replica_waiting", "gauge", "Requests that wait for one of several engines.", ("replica",)),
        Named("sapwood_replica_restarts", "counter", "How often one of several engines was begun again.", ("replica",)),
        Named(
            "sapwood_replica_events",
            "counter",
            "What one of several engines has counted since it was begun: steps, tokens, requests that have ended.",
            ("replica", "kind"),
        ),
        Named(
            "sapwood_engine_placed",
            "counter",
            "Requests by why they went to which of several engines: cached, balanced, new, together.",
            ("reason",),
        ),
        Named("sapwood_engine_sleeps", "counter", "How often the engine gave back memory of its device."),
        Named("sapwood_engine_wakes", "counter", "How often it took some again."),
        Named("sapwood_engine_sleep_seconds", "counter", "Time of giving it back."),
        Named("sapwood_engine_wake_seconds", "counter", "Time of taking it again."),
        Named("sapwood_engine_weight_updates", "counter", "How often the model was given other weights."),
        Named(
            "sapwood_engine_weight_update_seconds", "counter", "Time of these updates, in which nothing is computed."
        ),
        Named("sapwood_engine_steps", "counter", "Steps that were planned."),
        Named("sapwood_engine_prompt_tokens", "counter", "Prompt tokens that were computed."),
        Named("sapwood_engine_output_tokens", "counter", "Tokens that were drawn, or forced by a grammar."),
        Named("sapwood_engine_cached_tokens", "counter", "Prompt tokens that were found in the prefix cache."),
        Named("sapwood_engine_finished", "counter", "Requests that came to their end."),
        Named("sapwood_engine_errors", "counter", "Requests that ended with an error."),
        Named("sapwood_engine_preemptions", "counter", "Running requests that had to give way and wait again."),
        Named("sapwood_engine_evicted_pages", "counter", "Cached pages that were given up for others."),
        Named("sapwood_engine_copied_pages", "counter", "Pages copied since their beginning fitted."),
        Named("sapwood_engine_repaired_pages", "counter", "Wrong entries that audits found in the cache's books."),
        Named("sapwood_engine_constrained", "counter", "Requests with a grammar, or other restrictions of tokens."),
        Named("sapwood_engine_encoded_media", "counter", "Images and recordings that an encoder has taken in."),
        Named("sapwood_engine_encoded_positions", "counter", "Positions of their results."),
        Named(
            "sapwood_engine_encoder_cache_hits",
            "counter",
            "Images and recordings in prompts whose results were there already.",
        ),
        Named(
            "sapwood_engine_encoder_host_hits", "counter", "Results of encoders that came back from the host's memory."
        ),
        Named("sapwood_engine_encoder_host_kept", "counter", "Results of encoders that went to the host's memory."),
        Named("sapwood_engine_encoder_evictions", "counter", "Results of encoders that were given up for others."),
        Named("sapwood_engine_compiled_grammars", "counter", "Grammars that were compiled."),
        Named("sapwood_engine_masks", "counter", "Masks of tokens that were made."),
        Named("sapwood_engine_forced_tokens", "counter", "Tokens that a grammar left no choice about."),
        Named(
            "sapwood_engine_drafts", "counter", "Tokens that were fed as drafts, by who proposed them.", ("drafter",)
        ),
        Named("sapwood_engine_accepted_drafts", "counter", "Drafts that turned out to be right.", ("drafter",)),
        Named("sapwood_engine_thinned_prompts", "counter", "Prompts of which only a share was computed."),
        Named("sapwood_engine_left_out_prompt_tokens", "counter", "Tokens of prompts that were not computed at all."),
        Named(
            "sapwood_engine_estimate_seconds",
            "counter",
            "Time in which a smaller model chose what to compute of prompts, beside the loop.",
        ),
        Named("sapwood_engine_store_hits", "counter", "KV pages that came from a store.", ("store",)),
        Named("sapwood_engine_loaded_bytes", "counter", "Bytes of the KV pages that came from a store.", ("store",)),
        Named(
            "sapwood_engine_stored_bytes", "counter", "Bytes of the KV pages that a store keeps or kept.", ("store",)
        ),
        Named("sapwood_engine_load_seconds", "counter", "Time of loading from a store, beside the loop.", ("store",)),
        Named("sapwood_engine_store_seconds", "counter", "Time of writing to a store, beside the loop.", ("store",)),
        Named("sapwood_engine_offered", "counter", "Prompts that were computed for other engines."),
        Named("sapwood_engine_taken", "counter", "Those of them that others have fetched."),
        Named("sapwood_engine_expired", "counter", "Those that nobody has fetched in time."),
        Named("sapwood_engine_offered_pages", "counter", "KV pages that were kept for other engines."),
        Named("sapwood_engine_unoffered_pages", "counter", "Those for which there was no room."),
        Named("sapwood_engine_offered_blocks", "gauge", "KV pages that wait for other engines."),
        Named("sapwood_engine_fetches", "counter", "Prompts that other engines have computed."),
        Named("sapwood_engine_fetches_failed", "counter", "Those of which they could not say where they are."),
        Named("sapwood_engine_fetched_pages", "counter", "KV pages that came from other engines."),
        Named("sapwood_engine_unfetched_pages", "counter", "Those that did not come after all."),
        Named("sapwood_engine_fetch_seconds", "counter", "Time that requests have waited for them."),
        Named("sapwood_engine_handoff_bytes", "counter", "Bytes of KV pages from other engines, by the way.", ("way",)),
        Named("sapwood_engine_handoff_seconds", "counter", "Time of reading them, beside the loop.", ("way",)),
        Named("sapwood_engine_adapter_slots", "gauge", "Adapters that the device can hold at once."),
        Named("sapwood_engine_adapter_slots_used", "gauge", "Those that requests have now."),
        Named("sapwood_engine_adapter_reads", "counter", "Adapters that were read from files."),
        Named("sapwood_engine_adapter_read_seconds", "counter", "Time of reading adapters, beside the loop."),
        Named("sapwood_engine_adapter_loads", "counter", "Adapters that were copied to a slot of the device."),
        Named("sapwood_engine_adapter_evictions", "counter", "Adapters that gave their slot up for others."),
        Named(
            "sapwood_engine_adapter_host_evictions", "counter", "Adapters that the host's memory gave up for others."
        ),
        Named("sapwood_engine_host_seconds", "counter", "Time of planning steps and taking in what they yielded."),
        Named("sapwood_engine_wait_seconds", "counter", "Time of waiting for the device."),
        Named("sapwood_engine_mask_seconds", "counter", "Time of making masks, beside the device."),
        Named("sapwood_engine_accept_seconds", "counter", "Time of following grammars."),
        Named("sapwood_engine_compile_seconds", "counter", "Time of compiling grammars, beside the loop."),
        Named("sapwood_engine_step_seconds", "histogram", "What a step takes, by what is in it.", ("kind",)),
        Named("sapwood_engine_step_tokens", "histogram", "Tokens of a step, by what is in it.", ("kind",)),
        Named("sapwood_engine_step_host_seconds", "histogram", "What planning and taking in a step takes."),
    )
}
"""What the engine reports of itself."""
