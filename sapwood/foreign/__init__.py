"""Models in the modules of transformers, with our attention, weights and steps. Only what transformers itself holds is run, never code
that comes with a checkpoint."""
