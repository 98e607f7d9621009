import pytest

from flopcast.kernels.nf4 import format as layout
from flopcast.kernels.nf4.cost import conversion_bytes
from flopcast.kernels.rmsnorm import cost as rmsnorm
from flopcast.kernels.rope import cost as rope

# Bytes per token of PLaMo-13B in bf16: hidden 5120, 40 query and 5 key heads of 128.
D = 5120


@pytest.mark.parametrize(
    ("found", "per_token", "once"),
    [
        (lambda t: rmsnorm.forward_bytes(t, D, 2), 20484, 10240),
        (lambda t: rmsnorm.forward_bytes(t, D, 2, 1), 40964, 10240),
        (lambda t: rmsnorm.forward_bytes(t, D, 2, 2), 51204, 10240),
        (lambda t: rmsnorm.backward_bytes(t, D, 2), 30724, 20480),
        (lambda t: rmsnorm.backward_bytes(t, D, 2, True), 40964, 20480),
        (lambda t: rope.moved_bytes(t, 45, 128, 2), 23040 + 512, 0),
        (lambda t: rope.moved_bytes(t, 45, 128, 2, num_positions=1000), 23040 + 8, 512 * 1000),
    ],
)
def test_bytes_of_plamo_13b(found, per_token, once):
    assert found(8192) == 8192 * per_token + once


def test_the_forecasts_bytes_per_element_are_those_of_the_kernels():
    rows = 10**6
    for passed, moved in [
        (rmsnorm.FORWARD, rmsnorm.forward_bytes(rows, D, 2)),
        (rmsnorm.BACKWARD, rmsnorm.backward_bytes(rows, D, 2)),
        (rope.FORWARD, rope.moved_bytes(rows, 45, 128, 2) * D / (45 * 128)),
    ]:
        assert passed.bytes_per_element * rows * D == pytest.approx(moved, rel=0.03)
    with_one_branch = rmsnorm.FORWARD.bytes_per_element + rmsnorm.ADD_FORWARD.bytes_per_element
    assert with_one_branch * rows * D == pytest.approx(rmsnorm.forward_bytes(rows, D, 2, 1), rel=1e-3)


def test_nf4_moves_the_values_once_and_the_payload_once():
    numel = 10**8
    payload = int(layout.payload_bytes(numel))
    assert conversion_bytes(numel) == 2 * numel + payload
