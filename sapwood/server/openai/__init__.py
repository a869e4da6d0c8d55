"""OpenAI's API, with the extensions that users of vLLM and SGLang type."""
