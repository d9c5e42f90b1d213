"""Readers of quantised checkpoints, one module per format: `open_checkpoint(path)`.

A checkpoint is read weight by weight from memory-mapped files: what is in memory is the weight at hand.
"""

from ._checkpoint import Checkpoint, open_checkpoint
from ._weight import CheckpointWeight
from .gguf import GgufFile

__all__ = ["Checkpoint", "CheckpointWeight", "GgufFile", "open_checkpoint"]
