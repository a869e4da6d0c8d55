"""Benchmarks: offline workloads, decode latency, load over HTTP, and the host alone.

workloads    prompts and lengths, the same on every machine            offline   an engine in this process serves them
traffic      requests and arrivals for a server                        load      sends them; http speaks with the server
statistics   figures from what happened, as pure functions             host      scheduler and loop without a device
report       figures as a table, as JSON, beside an earlier run        plot      as a picture
"""
