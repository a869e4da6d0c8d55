"""What ranks say to one another while a step is computed."""

from sapwood.parallel.mesh import ALONE, Alone, Mesh

__all__ = ["ALONE", "Alone", "Mesh"]
