"""The 4-bit all-gather: every rank quantises its tensor, one uint8 payload travels, every rank dequantises all parts.

A rank's own part is dequantised too, so that all ranks end with the same bits. On the wire the payload takes 4.129
bits per parameter, 0.2581 of bf16, plus padding to 16 bytes; all segments travel in one message and pay one latency.
The idea is that of PLaMo-13B's training (Preferred Networks, 2023) and of ZeRO++'s qwZ (arXiv:2306.10209), which has
8 bits and no second level.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from flopcast.collectives.running.agreement import agree, reporting
from flopcast.collectives.running.payload import Layout
from flopcast.collectives.running.pytorch import all_gather_single
from flopcast.errors import InputError

NAME = "quantised_all_gather"


class Pending(dist.Work):
    """An all-gather of payloads under way; ``wait`` ends it and dequantises."""

    def __init__(self, gathering: dist.Work | None, finish: Callable[[], None]) -> None:
        super().__init__()
        self._gathering, self._finish = gathering, finish
        self._done = False

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Block the host (gloo) or the current stream (NCCL) until the output holds the values."""
        if self._done:
            return True
        if self._gathering is not None:
            with reporting(NAME):
                self._gathering.wait(timeout) if timeout else self._gathering.wait()
        self._finish()
        self._done = True
        return True


def quantised_all_gather(
    output: torch.Tensor,
    values: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    layout: Layout | None = None,
    async_op: bool = False,
    check: bool = True,
) -> Pending | None:
    """All ranks' ``values`` [numel] in rank order in ``output`` [n * numel], quantised to 4 bits on the way.

    The arguments are those of ``torch.distributed.all_gather_single``; ``values`` may be this rank's part of
    ``output``. ``layout`` says which parts travel raw (none by default). With ``check`` the ranks first compare sizes
    and types, which costs a small message, and raise the same InputError where they differ; without it they must
    agree. A group of one copies. Raises CollectiveError where a rank dies or does not come within the group's timeout.
    """
    if dist.get_rank(group) < 0:
        raise InputError(f"{NAME}: rank {dist.get_rank()} is not in the group; call it on the group's ranks alone")
    output = output.detach()  # the memory alone: of a parameter too, as torch.distributed's own
    if check:
        problem = _problem(output, values, group, layout)
        agree(NAME, values, [group], problem=problem, signature=layout.signature if layout else 0)
    if dist.get_world_size(group) == 1:
        output.view(-1).copy_(values.reshape(-1))
        return Pending(None, lambda: None) if async_op else None
    chosen = layout or Layout.whole(values.numel(), values.dtype)
    payloads, gathering = gather_payloads(chosen.quantise(values), group)

    def finish() -> None:
        if payloads.is_cuda:  # made on the stream of the call, and read on that of the wait
            payloads.record_stream(torch.cuda.current_stream(payloads.device))
        chosen.dequantise(payloads, output.view(-1))

    pending = Pending(gathering, finish)
    if async_op:
        return pending
    pending.wait()
    return None


def gather_payloads(payload: torch.Tensor, group: dist.ProcessGroup | None) -> tuple[torch.Tensor, dist.Work | None]:
    """Every rank's ``payload``, uint8 [..., bytes], as uint8 [n * rows, bytes], valid once the work is waited for."""
    rows = payload.view(-1, payload.shape[-1])
    payloads = torch.empty(
        (dist.get_world_size(group) * len(rows), rows.shape[1]), dtype=torch.uint8, device=payload.device
    )
    with reporting(NAME):
        return payloads, all_gather_single(payloads, rows, group=group, async_op=True)


@dataclass(frozen=True)
class KeptPayloads:
    """What one rank of a node keeps of a gather over all ranks: ``payloads`` uint8 [n / node size, num_bytes]."""

    payloads: torch.Tensor
    layout: Layout


def gather_and_keep(
    output: torch.Tensor, values: torch.Tensor, layout: Layout, group: dist.ProcessGroup | None, node_size: int
) -> KeptPayloads:
    """All-gather once over all ranks into ``output`` [n * numel], and keep this rank's share of the node's copy.

    Node rank r = rank % node_size keeps the payloads of ranks r n/node_size to (r + 1) n/node_size - 1: the share of
    FSDP2's ``reshard_after_forward=node_size``, at 0.516 instead of 2 bytes per parameter.
    """
    payloads, gathering = gather_payloads(layout.quantise(values), group)
    Pending(gathering, lambda: layout.dequantise(payloads, output.view(-1))).wait()
    return keep(payloads, layout, dist.get_rank(group), node_size)


def keep(payloads: torch.Tensor, layout: Layout, rank: int, node_size: int) -> KeptPayloads:
    """The share of ``payloads`` [n, num_bytes] that ``rank`` keeps, copied so that the rest can be freed."""
    if node_size < 1 or len(payloads) % node_size:
        raise InputError(f"node_size is {node_size}; give a divisor of the {len(payloads)} ranks")
    share = len(payloads) // node_size
    first = rank % node_size * share
    return KeptPayloads(payloads[first : first + share].clone(), layout)


def gather_kept(output: torch.Tensor, kept: KeptPayloads, node_group: dist.ProcessGroup) -> None:
    """The same values in ``output`` [n * numel] again, bit for bit, from the payloads kept in the node alone."""
    payloads, gathering = gather_payloads(kept.payloads, node_group)
    Pending(gathering, lambda: kept.layout.dequantise(payloads, output.view(-1))).wait()


def _problem(output: torch.Tensor, values: torch.Tensor, group: dist.ProcessGroup | None, layout: Layout | None) -> str:
    """What is wrong with this rank's arguments, in words, or nothing."""
    ranks = dist.get_world_size(group)
    if output.numel() != ranks * values.numel():
        return f"output has {output.numel()} elements; {ranks} ranks of {values.numel()} need {ranks * values.numel()}"
    if output.dtype != values.dtype or output.device != values.device:
        return f"output is {output.dtype} on {output.device}, values {values.dtype} on {values.device}; make them alike"
    if not output.is_contiguous():
        return "output is not contiguous; give a contiguous tensor"
    if layout is not None and (layout.numel, layout.dtype) != (values.numel(), values.dtype):
        return (
            f"the layout is of {layout.numel} elements of {layout.dtype}, values has {values.numel()} of {values.dtype}"
        )
    if values.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"values are {values.dtype}; the 4-bit all-gather takes float32, bfloat16 or float16"
    return ""
