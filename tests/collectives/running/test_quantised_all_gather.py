"""The 4-bit all-gather on four gloo ranks, and its bytes on the wire."""

import numpy as np
import pytest
import torch

from flopcast.collectives.running.payload import Layout, Segment
from flopcast.errors import InputError
from flopcast.kernels.nf4.format import aligned, payload_bytes
from flopcast.simulator.catalogue import load_model


def test_on_four_ranks(four_ranks: dict[str, list[str]], case: str) -> None:
    assert four_ranks.get(case) == ["passed"] * 4, "\n".join(four_ranks.get(case, [str(four_ranks)]))


def test_layout_counts_what_it_packs() -> None:
    layout = Layout((Segment(99), Segment(3, raw=True), Segment(10)), torch.bfloat16)
    payload = layout.quantise(torch.randn(layout.numel).bfloat16())
    assert payload.numel() == layout.num_bytes == int(payload_bytes(99)) + 16 + int(payload_bytes(10))
    with pytest.raises(InputError, match="at least one segment"):
        Layout((), torch.bfloat16)
    with pytest.raises(InputError, match="takes float32"):
        Layout((Segment(3),), torch.int32)


@pytest.mark.parametrize("together", [1, 2, 3, 6])
def test_values_can_be_written_segment_by_segment(together: int) -> None:
    layout = Layout((Segment(100), Segment(5, raw=True), Segment(70)), torch.float32)
    values = torch.randn(6, layout.numel)
    payloads = torch.stack([layout.quantise(row) for row in values])
    by_rank = torch.empty(6, layout.numel)
    layout.dequantise(payloads, by_rank.view(-1))
    mixed = torch.empty(6 * layout.numel)
    layout.dequantise(payloads, mixed, together)
    expected = [
        part[:, begin:end].reshape(-1)
        for part in by_rank.split(together)
        for begin, end in ((0, 100), (100, 105), (105, 175))
    ]
    assert torch.equal(mixed, torch.cat(expected))


def test_plamo_13b_at_480_ranks_sends_at_most_26_percent_of_bf16() -> None:
    """Every tensor of the model, split by rows over 480 ranks and padded as FSDP2 does, layer by layer."""
    model = load_model("plamo-13b")
    block = model.layers[0]
    units = [[tensor.shape for tensor in block.tensors(model.hidden)]] * model.num_layers
    units.append([tensor.shape for tensor in model.root_tensors()])
    assert sum(int(np.prod(shape)) for unit in units for shape in unit) == 13_099_545_600

    ranks = 480
    # Dim 0 over the ranks; one-dimensional parameters travel raw.
    per_rank = [[(-(-s[0] // ranks) * int(np.prod(s[1:])), len(s) == 1) for s in unit] for unit in units]
    layouts = [Layout(tuple(Segment(*part) for part in parts), torch.bfloat16) for parts in per_rank]
    quantised = sum(ranks * layout.num_bytes for layout in layouts)
    raw = sum(ranks * layout.numel * 2 for layout in layouts)
    assert raw == sum(ranks * -(-s[0] // ranks) * int(np.prod(s[1:])) * 2 for unit in units for s in unit)
    assert quantised / raw <= 0.2600
    assert quantised / raw == pytest.approx(0.25807, abs=1e-4)
    # The same from the format alone, without the code that packs.
    sizes = (int(aligned(2 * n) if raw else payload_bytes(n)) for parts in per_rank for n, raw in parts)
    assert quantised == ranks * sum(sizes)
