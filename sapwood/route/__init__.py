"""A router: one address before many servers that speak OpenAI's, Anthropic's or Ollama's API, ours or others'.

`table` is what its owner wrote, `fleet` what is known of the servers, `policies` choose one, `proxy` carries a request there and
its answer back, `watch` looks whether they are well, `app` puts these together.
"""
