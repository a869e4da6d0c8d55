"""The modules of towers (`sapwood.arch.sight`), in plain PyTorch: an image or a recording is encoded once, so what counts is the decoder."""

from sapwood.nn.sight import intern, pixtral, pooled, qwen, qwen3, tiled, vit, whisper
from sapwood.nn.sight.tower import TowerModule

__all__ = ["TowerModule", "intern", "pixtral", "pooled", "qwen", "qwen3", "tiled", "vit", "whisper"]
