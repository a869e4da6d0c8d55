"""How the weights of a Linear are stored and multiplied."""
