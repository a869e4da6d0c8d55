"""Benchmarks: offline workloads, decode latency, load over HTTP, and the host alone.

target       what all of them are: a target under a load, samples, figures, a row      workloads   the same on every machine
host         scheduler and loop without a device        offline    an engine here      load        a server, through http
statistics   figures from what happened                 traffic    what sessions are made of, and when they come
report       figures as a table, as JSON, beside an earlier run                        plot        as a picture
"""
