"""Making quantised checkpoints, with the tools of others: LLM Compressor for directories, the `gguf` package for GGUF files."""
