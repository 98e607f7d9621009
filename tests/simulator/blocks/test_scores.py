"""How many tokens a token attends to, against the mask itself."""

import numpy as np
import pytest
from builders import cluster, plan, small_model

from flopcast import InputError
from flopcast.simulator.blocks.scores import Reach
from flopcast.simulator.blocks.transformer import Attention, TransformerBlock
from flopcast.simulator.forecast import forecast
from flopcast.simulator.model import Model
from flopcast.simulator.operation import AttentionCore


@pytest.mark.parametrize("length", [48, 64, 100, 250, 1024])
@pytest.mark.parametrize(("window", "chunk"), [(None, None), (64, None), (None, 64)])
def test_mean_keys_are_the_masks(length: int, window: int | None, chunk: int | None) -> None:
    """Of a token half counts: the closed forms are those of the continuum, half a key short of the mask."""
    query, key = np.indices((length, length))
    seen = key <= query
    if window:
        seen &= key > query - window
    if chunk:
        seen &= key // chunk == query // chunk
    reach = Reach(window, chunk)
    assert float(reach.keys(length)) == pytest.approx(seen.sum() / length - 0.5, abs=1e-9 if chunk else 0.51)
    assert reach.span(length) == seen.sum(axis=1).max()


def test_a_sequence_in_chunks_is_as_many_short_sequences() -> None:
    """2048 tokens in chunks of 512: the FLOPs of four sequences of 512, half of one window less its ramp."""
    assert _attention_flop(chunk=512, seq_len=2048) == pytest.approx(4 * _attention_flop(seq_len=512))
    assert _attention_flop(chunk=4096, seq_len=2048) == _attention_flop(seq_len=2048)
    # A window of w has w - w^2/2S keys, a chunk w/2.
    assert _attention_flop(window=512, seq_len=2048) / _attention_flop(chunk=512, seq_len=2048) == pytest.approx(1.75)


def _attention_flop(seq_len: int, **reach: int) -> float:
    usual = small_model()
    block = usual.layers[0]
    assert isinstance(block, TransformerBlock)
    attention = Attention(8, 8, 128, **reach)
    model = Model("small", 1024, 32000, 4096, (TransformerBlock(attention, block.mlp),) * 4)
    found = forecast(model, cluster(), plan("zero3", 16, seq_len=seq_len))
    return sum(float((o.work.flop * o.count)[0]) for o in found.operations if isinstance(o.work, AttentionCore))


def test_a_window_and_chunks_contradict_each_other() -> None:
    with pytest.raises(InputError, match="a window of 64 and chunks of 32; leave out one"):
        Attention(8, 8, 128, window=64, chunk=32)
