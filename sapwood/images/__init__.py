"""Images on their way to a model: where they come from, how they are decoded within bounds, and what a family's encoder takes of them.

Nothing here knows the engine or a tensor; decoding needs Pillow (the extra `vision`).
"""
