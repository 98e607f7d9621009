"""What ``compare`` and ``report`` ask alike: the flags of a question, and the request they make."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flopcast.cli.numbers import amount
from flopcast.errors import InputError

if TYPE_CHECKING:
    from flopcast.simulator.request import Request


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Question:
    """What a planner asks of one model on one cluster.

    Parameters
    ----------
    cluster
        A catalogue name (abci-a) or the path of a TOML file; its [operation] table gives price, power, node_mtbf_hours.
    gpus
        GPUs of the job: within one node, or whole nodes.
    tokens_per_gpu
        Tokens per GPU and optimizer step; by default about 4 Mi tokens over all GPUs.
    seq_len
        Tokens per sequence; by default those of the model's pre-training, for a config.json its longest.
    micro_batch
        Sequences per rank and pass.
    ep
        Ranks that share out the experts of a mixture of experts; by default the number that runs fastest.
    recompute
        none, selective or full.
    recompute_layers
        With full, only so many layers of each model chunk (Megatron's --recompute-num-layers, method block); 0 is all.
    gradient_bits
        Width at which gradients are reduced: 16 or 32.
    precision
        bf16, or fp8: the layers' products in 8 bits, with casts fused as torchao and Transformer Engine do.
    attention
        unfused, triton, flash1, flash2, flash3, flash4 or cudnn; by default what PyTorch runs on that GPU.
    compiled
        torch.compile fuses all pointwise work.
    fused_kernels
        Hand-written RoPE and RMSNorm kernels; --no-fused-kernels for eager PyTorch.
    strategies
        ddp, zero1, zero2, zero3, zero3-node, hsdp, tp8 (any tpN); +q4 on zero3, zero3-node, hsdp: a 4-bit gather.
    convention
        What MFU and HFU count: 6n (no attention), causal (half the scores) or full.
    tokens
        Token budget of the whole training, e.g. 1.4T, 300B or 1.4e12; by default 20 per parameter.

    """

    cluster: str
    gpus: int
    tokens_per_gpu: int | None = None
    seq_len: int | None = None
    micro_batch: int | None = None
    ep: int | None = None
    recompute: str | None = None
    recompute_layers: int = 0
    gradient_bits: int = 32
    precision: str = "bf16"
    attention: str | None = None
    compiled: bool = False
    fused_kernels: bool = True
    strategies: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None
    convention: Literal["6n", "causal", "full"] = "causal"
    tokens: Annotated[float | None, Parameter(converter=amount)] = None

    def request(self) -> "Request":
        """The request that is put to the forecast. Raises InputError for a token budget that is none."""
        from flopcast.simulator.goodput import check_tokens
        from flopcast.simulator.request import Request

        if self.tokens is not None:
            check_tokens(self.tokens)
        # "--strategies ddp,zero3" and "--strategies ddp zero3" alike.
        names = [part for name in self.strategies or [] for part in name.split(",") if part]
        if self.strategies is not None and not names:
            raise InputError("--strategies has no value; name some (--strategies zero1 zero3), or leave it out for all")
        return Request(
            num_gpus=self.gpus,
            tokens_per_gpu=self.tokens_per_gpu,
            seq_len=self.seq_len,
            micro_batch=self.micro_batch,
            ep=self.ep,
            recompute=self.recompute and self.recompute.lower(),  # type: ignore[arg-type]
            recompute_layers=self.recompute_layers,
            gradient_bits=self.gradient_bits,
            precision=self.precision.lower(),  # type: ignore[arg-type]
            attention=self.attention and self.attention.lower(),  # type: ignore[arg-type]
            compiled=self.compiled,
            fused_kernels=self.fused_kernels,
            strategies=names or None,
            convention=self.convention,
        )
