"""Training under a plan on PyTorch's own engine: FSDP2, tensor parallelism on DTensors, and its pipelines.

``build`` gives an :class:`Engine`; nothing in it depends on where the data come from.
"""

from flopcast.trainer.engine.build import Skeleton, assemble, build
from flopcast.trainer.engine.engine import Engine
from flopcast.trainer.engine.settings import OptimizerSettings

__all__ = ["Engine", "OptimizerSettings", "Skeleton", "assemble", "build"]
