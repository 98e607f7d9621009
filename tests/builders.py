"""Small models, clusters and plans for the tests, with round numbers that can be checked by hand."""

from typing import Any

from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.cluster import Cluster, Gpu
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, placement

A100 = Gpu("a100-80gb", "ampere", 312e12, 80 * 2**30, 2.039e12, 400.0)
H100 = Gpu("h100-80gb", "hopper", 989e12, 80 * 2**30, 3.35e12, 700.0, fp8_flop_per_s=1979e12)

# Of a profile's measurements: shapes that take a CPU no time, and as few samples as there can be.
PROFILE_SHAPES: dict[str, Any] = {
    "gemms": ((32, 64, 48),),
    "attentions": ((1, 32, 2, 1, 16),),
    "copies": (2**14,),
    "parameters": (2**10,),
    "pieces": ((16, 128),),
    "samples": 2,
}


def small_model(
    hidden: int = 1024,
    num_heads: int = 8,
    num_kv_heads: int = 8,
    intermediate: int = 2816,
    num_layers: int = 4,
    vocab_size: int = 32000,
    parallel: bool = False,
    gated: bool = True,
) -> Model:
    attention = Attention(num_heads, num_kv_heads, hidden // num_heads)
    block = TransformerBlock(attention, Mlp(intermediate, gated), parallel=parallel, num_norms=1 if parallel else 2)
    return Model("small", hidden, vocab_size, 2048, (block,) * num_layers)


def cluster(
    gpu: Gpu = A100,
    gpus_per_node: int = 8,
    nvlink_bytes_per_s: float = 300e9,
    nics_per_node: int = 8,
    nic_bytes_per_s: float = 25e9,
) -> Cluster:
    return Cluster("test", gpu, gpus_per_node, nvlink_bytes_per_s, True, nics_per_node, nic_bytes_per_s, "infiniband")


def plan(strategy: str = "zero3", num_gpus: int = 16, gpus_per_node: int = 8, **fields: Any) -> Plan:
    layout = placement(strategy, num_gpus, gpus_per_node, pp=fields.get("pp", 1))
    return Plan(**{"seq_len": 2048, **layout, **fields})


# A complete row of a table of runs.
RUN: dict[str, Any] = {
    "id": "one",
    "source_key": "table",
    "model_name": "llama2-7b",
    "n_layers": 32,
    "hidden": 4096,
    "ffn_hidden": 11008,
    "n_heads": 32,
    "n_kv_heads": 32,
    "vocab": 32000,
    "seq_len": 4096,
    "mlp_type": "swiglu",
    "gpu": "A100-80GB",
    "gpus_per_node": 8,
    "n_gpus": 64,
    "node_gbit": 1600,
    "framework": "torchtitan (FSDP2)",
    "sharding": "fsdp_full",
    "micro_batch": 2,
    "global_batch_seqs": 256,
    "recompute": "full",
    "precision": "bf16",
    "attention": "flash2",
    "measured_step_s": 10.0,
}
