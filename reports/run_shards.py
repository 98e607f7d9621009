"""What tables call the sharding of a run, and over how many ranks it spans."""

import re
from typing import Any

from flopcast.errors import InputError
from flopcast.reports.run_row import Row

STAGE = re.compile(r"zero[-_ ]?(?:stage[-_ ]?)?(\d)")
# FSDP's names for full sharding, Colossal-AI's Gemini, ZeRO-Infinity, and those below.
FULL = re.compile(r"fsdp|hsdp|full|hybrid|gemini|infinity")
# A copy of the parameters in each node: ZeRO++ (arXiv:2306.10209, hpZ).
NODE_COPY = re.compile(r"zero(\+\+|pp)|hpz|zero3-node")
# Everything sharded within a group and replicated over groups: FSDP's hybrid, MiCS (arXiv:2205.00119).
WITHIN_GROUP = re.compile(r"hybrid|hsdp|mics")
REPLICATED = re.compile(r"^(ddp|dp|none|no|no[-_ ]shard|data[-_ ]parallel.*|replicated|-)?$")
# ZeRO-Offload (arXiv:2101.06840) and whoever says that the optimizer is on the CPU.
OFFLOADED = re.compile(r"cpu[-_ ]?offload|zero[-_ ]?\d?[-_ ]?offload|zero[-_ ]?infinity")


def zero_stage(sharding: str) -> int:
    """The ZeRO stage that a name stands for: 0 to 3. Raises InputError for a stage that there is not."""
    if NODE_COPY.search(sharding) or WITHIN_GROUP.search(sharding):
        return 3
    stage = STAGE.search(sharding)
    if stage:
        if int(stage[1]) > 3:
            raise InputError(f"sharding is '{sharding}'; ZeRO has the stages 1, 2 and 3")
        return int(stage[1])
    if sharding == "shard_grad_op" or "zero-offload" in sharding:
        return 2
    distributed = "optimizer" in sharding and ("distributed" in sharding or "shard" in sharding)
    return 3 if FULL.search(sharding) else int(distributed)


def shards(row: Row, sharding: str, world: int, pp: int, node: int) -> dict[str, Any]:
    """The shard sizes of a plan over ``world`` data-parallel ranks, ``node`` of them in a node.

    No software gathers parameters or reduces gradients once per micro-batch of a pipeline: DeepSpeed refuses to
    (runtime/pipe/engine.py: "ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism"), PyTorch's pipelines reduce
    after the last one and torchtitan leaves parameters gathered (reshard_after_forward_policy "default"), as Llama 3's
    training (arXiv:2407.21783, section 3.3.2) and MegaScale (arXiv:2402.15627, section 3.2) do.
    """
    stage = zero_stage(sharding)
    if stage == 0 and not REPLICATED.match(sharding):
        row.known("sharding", None, "ddp")
    if pp > 1:
        stage = min(stage, 1)
    in_node = max(d for d in range(1, max(node, 1) + 1) if world % d == 0)
    usual = in_node if WITHIN_GROUP.search(sharding) else world
    group = row.whole("shard_group_size") if row.has("shard_group_size") else usual
    if group != usual and world % group:
        row.doubt(f"shard_group_size {usual}: {group} does not divide the {world} data-parallel ranks")
        group = usual
    sizes = [group if stage > index else 1 for index in range(3)]
    if NODE_COPY.search(sharding) and stage == 3:
        sizes = [world, world, in_node]
    return dict(zip(("optimizer_shard", "gradient_shard", "parameter_shard"), sizes, strict=True))
