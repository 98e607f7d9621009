"""What flopcast reads from TOML: clusters, GPUs and models, checked field by field (pydantic, only here)."""

from flopcast.simulator.specification.cluster import parse_cluster, read_cluster
from flopcast.simulator.specification.gpu import CatalogueGpu, TypicalNode, catalogue_gpu, gpu_names
from flopcast.simulator.specification.model import ModelTable, parse_model, read_model

__all__ = [
    "CatalogueGpu",
    "ModelTable",
    "TypicalNode",
    "catalogue_gpu",
    "gpu_names",
    "parse_cluster",
    "parse_model",
    "read_cluster",
    "read_model",
]
