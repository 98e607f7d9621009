"""The ranks of a plan as a mesh: pipeline, replicas, shards, tensor, the last varying fastest (Megatron's order)."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flopcast.simulator.plan import Plan
from flopcast.trainer.tensor_parallel import TensorParallel

PIPELINE, REPLICAS, SHARDS, TENSOR = "pipeline", "replicas", "shards", "tensor"


@dataclass(frozen=True)
class Ranks:
    """The mesh of all ranks, and the place of this one in it."""

    mesh: DeviceMesh
    plan: Plan

    @classmethod
    def of(cls, plan: Plan, device_type: str) -> "Ranks":
        """The mesh of ``plan`` over all ranks of the default process group."""
        shards = plan.optimizer_shard
        sizes = (plan.pp, plan.dp // shards, shards, plan.tp)
        return cls(init_device_mesh(device_type, sizes, mesh_dim_names=(PIPELINE, REPLICAS, SHARDS, TENSOR)), plan)

    @property
    def data(self) -> DeviceMesh:
        """What FSDP2 shards over, and replicates over where the plan has replicas."""
        only_shards = self.mesh.size(1) == 1 and self.mesh.size(2) > 1
        return self.mesh[SHARDS] if only_shards else self.mesh[REPLICAS, SHARDS]

    def group(self, name: str) -> dist.ProcessGroup:
        """The ranks that differ from this one along one dimension alone."""
        return self.mesh.get_group(name)

    def place(self, name: str) -> int:
        """The number of this rank along a dimension."""
        return self.mesh.get_local_rank(name)

    @property
    def tensor_parallel(self) -> TensorParallel:
        """The ranks that share this rank's layers."""
        if self.plan.tp == 1:
            return TensorParallel()
        return TensorParallel(self.group(TENSOR), self.plan.sequence_parallel)

    @property
    def data_rank(self) -> int:
        """Which of the data-parallel ranks this is: which sequences it reads."""
        return self.place(REPLICAS) * self.plan.optimizer_shard + self.place(SHARDS)
