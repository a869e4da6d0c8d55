"""What ranks say to one another while a step is computed."""

from sapwood.parallel.mesh import ALONE, Alone, Mesh
from sapwood.parallel.ways import NO_PIPE, Pipe

__all__ = ["ALONE", "NO_PIPE", "Alone", "Mesh", "Pipe"]
