"""Histories that are too long are shortened so that their beginning stays the same to the byte from turn to turn: `shapes` reads messages of
two APIs, `plan` says where is cut, `compact` cuts, `summary` has a model say what was there, `counts` counts, `guest` does so for requests."""
