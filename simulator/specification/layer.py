"""``[[layers]]`` of a model file: one kind of layer, what it needs and what does not belong in it."""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.latent_attention import LatentAttention
from flopcast.simulator.blocks.residual import FeedForward, Mixer
from flopcast.simulator.blocks.state_space import StateSpace
from flopcast.simulator.blocks.transformer import Attention, KeyValueLayout, Mlp, block_of
from flopcast.simulator.model import Block, Norm
from flopcast.simulator.specification.document import MAX_COUNT, Table

MAX_LAYERS = 10_000

Value = TypeVar("Value")
Size = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Kind = Literal["transformer", "latent-attention", "state-space"]

# What each kind of layer needs, and what it may have besides; then the same for what follows attention.
NEEDS: dict[Kind, tuple[str, ...]] = {
    "transformer": ("num_heads", "num_kv_heads", "head_dim"),
    "latent-attention": ("num_heads", "kv_rank", "nope_dim", "rope_dim", "value_dim"),
    "state-space": ("num_heads", "head_dim", "state_dim", "rank"),
}
ALLOWS: dict[Kind, tuple[str, ...]] = {
    "transformer": (
        *("qkv_bias", "output_bias", "qk_norm", "qk_norm_per_head", "fused_qkv", "kv_layout", "window"),
        *("chunk", "rotary_share", "sinks"),
    ),
    "latent-attention": ("query_rank",),
    "state-space": ("convolution", "chunk"),
}
MLP_NEEDS, MLP_ALLOWS = ("intermediate", "gated"), ("mlp_bias",)
EXPERTS_NEED = ("num_experts", "experts_per_token", "expert_intermediate")
EXPERTS_ALLOW = ("shared_intermediate", "shared_gate", "num_groups", "groups_per_token", "expert_bias")
ANY_LAYER = ("kind", "repeat", "parallel", "num_norms", "post_norm")


class LayerTable(Table):
    """One kind of layer, ``repeat`` times in a row; fields as in the blocks' dataclasses.

    ``kind`` says how it mixes tokens. What follows is an MLP of ``intermediate`` features, or ``num_experts`` of
    ``expert_intermediate`` each.
    """

    kind: Kind = "transformer"
    repeat: Annotated[int, Field(gt=0, le=MAX_LAYERS)] = 1
    num_heads: Size | None = Field(default=None, examples=["32"])
    num_kv_heads: Size | None = Field(default=None, examples=["8"])
    head_dim: Size | None = Field(default=None, examples=["128"])
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    qk_norm_per_head: bool = False
    fused_qkv: bool = False
    kv_layout: KeyValueLayout = "grouped"
    window: Size | None = None
    rotary_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    sinks: bool = False
    kv_rank: Size | None = Field(default=None, examples=["512"])
    nope_dim: Size | None = Field(default=None, examples=["128"])
    rope_dim: Size | None = Field(default=None, examples=["64"])
    value_dim: Size | None = Field(default=None, examples=["128"])
    query_rank: Size | None = None
    state_dim: Size | None = Field(default=None, examples=["64"])
    rank: Size | None = Field(default=None, examples=["128"])
    convolution: Size = 4
    chunk: Size | None = None
    intermediate: Size | None = Field(default=None, examples=["14336"])
    gated: bool | None = Field(default=None, examples=["true"])
    mlp_bias: bool = False
    num_experts: Size | None = Field(default=None, examples=["8"])
    experts_per_token: Size | None = Field(default=None, examples=["2"])
    expert_intermediate: Size | None = Field(default=None, examples=["14336"])
    shared_intermediate: Size | None = None
    shared_gate: bool = False
    num_groups: Size = 1
    groups_per_token: Size = 1
    expert_bias: bool = False
    parallel: bool = False
    num_norms: Annotated[int, Field(ge=0, le=4)] = 2
    post_norm: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Every field that the kind of layer needs is there, and none that is another kind's."""
        experts = self.num_experts is not None
        needed = (*NEEDS[self.kind], *(EXPERTS_NEED if experts else MLP_NEEDS))
        allowed = {*ANY_LAYER, *needed, *ALLOWS[self.kind], *(EXPERTS_ALLOW if experts else MLP_ALLOWS)}
        faults: list[InitErrorDetails] = [
            {"type": "missing", "loc": (name,), "input": None} for name in needed if getattr(self, name) is None
        ]
        owner = f'kind = "{self.kind}"' + (" with num_experts" if experts else " without num_experts")
        stranger = PydanticCustomError("value_error", "stranger", {"error": f"a layer of {owner} has none; remove it"})
        faults += [
            {"type": stranger, "loc": (name,), "input": getattr(self, name)}
            for name in sorted(self.model_fields_set - allowed)
        ]
        if faults:
            raise ValidationError.from_exception_data("LayerTable", faults)
        return self

    def block(self, norm: Norm, norm_bias: bool) -> Block:
        """The layer as the block that the operations are made from."""
        shape = {"parallel": self.parallel, "num_norms": self.num_norms, "post_norm": self.post_norm}
        return block_of(self._mixer(), self._feed_forward(), norm=norm, norm_bias=norm_bias, **shape)

    def _mixer(self) -> Mixer:
        if self.kind == "latent-attention":
            return LatentAttention(
                num_heads=_given(self.num_heads),
                kv_rank=_given(self.kv_rank),
                nope_dim=_given(self.nope_dim),
                rope_dim=_given(self.rope_dim),
                value_dim=_given(self.value_dim),
                query_rank=self.query_rank or 0,
            )
        if self.kind == "state-space":
            return StateSpace(
                num_heads=_given(self.num_heads),
                head_dim=_given(self.head_dim),
                state_dim=_given(self.state_dim),
                rank=_given(self.rank),
                convolution=self.convolution,
                chunk=self.chunk or StateSpace.chunk,
            )
        return Attention(
            num_heads=_given(self.num_heads),
            num_kv_heads=_given(self.num_kv_heads),
            head_dim=_given(self.head_dim),
            qkv_bias=self.qkv_bias,
            output_bias=self.output_bias,
            qk_norm=self.qk_norm or self.qk_norm_per_head,
            qk_norm_per_head=self.qk_norm_per_head,
            fused_qkv=self.fused_qkv,
            kv_layout=self.kv_layout,
            window=self.window,
            chunk=self.chunk,
            rotary_share=self.rotary_share,
            sinks=self.sinks,
        )

    def _feed_forward(self) -> FeedForward:
        if self.num_experts is None:
            return Mlp(intermediate=_given(self.intermediate), gated=_given(self.gated), bias=self.mlp_bias)
        return Experts(
            num_experts=self.num_experts,
            experts_per_token=_given(self.experts_per_token),
            intermediate=_given(self.expert_intermediate),
            shared_intermediate=self.shared_intermediate or 0,
            shared_gate=self.shared_gate,
            num_groups=self.num_groups,
            groups_per_token=self.groups_per_token,
            bias=self.expert_bias,
        )


def _given(value: Value | None) -> Value:
    """A field that :meth:`LayerTable._complete` has seen."""
    assert value is not None
    return value
