"""How checkpoints store quantised weights: a file for each that reads a config's section, and turns tensors into kinds."""
