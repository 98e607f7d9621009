import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flopcast.kernels.emulator import loader
from flopcast.kernels.rmsnorm import variant as rmsnorm
from flopcast.kernels.variant import Variant

BLOCK_SUM = """
extern "C" __global__ void block_sum(const float* x, float* out, int n) {
    __shared__ float scratch[64];
    const int t = threadIdx.x;
    scratch[t] = t < n ? x[blockIdx.x * n + t] : 0.0f;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (t < half) scratch[t] += scratch[t + half];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = scratch[0];
}
"""
VARIANT = Variant("block_sum.cu", "block_sum", (), 64)
X = np.arange(120, dtype=np.float32).reshape(2, 60)


def block_sum(builds: Path, text: str, order: str) -> list[float]:
    out = np.full(2, np.nan, np.float32)
    loader.load(VARIANT, builds, text=text)((2, 1), [X, out, np.int32(60)], order)
    return [float(v) for v in out]


def broken(old: str, new: str) -> str:
    assert BLOCK_SUM.count(old) >= 1
    return BLOCK_SUM.replace(old, new, 1)


@pytest.mark.parametrize("order", list(loader.ORDERS))
def test_a_sound_kernel_is_right_in_every_order(builds, order):
    assert block_sum(builds, BLOCK_SUM, order) == X.sum(1).tolist()


def results(builds: Path, text: str) -> list[list[float]]:
    return [block_sum(builds, text, order) for order in loader.ORDERS]


def test_a_missing_barrier_shows_in_some_order(builds):
    text = broken("0.0f;\n    __syncthreads();", "0.0f;")
    assert any(found != X.sum(1).tolist() for found in results(builds, text))


def test_a_race_within_a_phase_shows_in_some_order(builds):
    text = broken("scratch[t] += scratch[t + half];\n        __syncthreads();", "scratch[t] += scratch[t + half];")
    assert any(found != X.sum(1).tolist() for found in results(builds, text))


def test_stale_shared_memory_is_not_a_number(builds):
    text = broken("scratch[t] = t < n ? x[blockIdx.x * n + t] : 0.0f;", "if (t < n) scratch[t] = x[t];")
    assert all(np.isnan(found).all() for found in results(builds, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (broken("        __syncthreads();\n    }", "if (t < half) __syncthreads();\n    }"), "deadlock in block"),
        (broken("int t = threadIdx.x;", "int t = threadIdx.x; if (t >= n) return;"), "a barrier that not all"),
        (broken("if (t == 0)", "if (t % 2) __syncthreads();\n else\n __syncthreads();\n if (t == 0)"), "others at"),
        (broken("if (t == 0)", "if (t < 7) __shfl_xor_sync(0xffffffffu, t, 1);\n if (t == 0)"), "a shuffle"),
    ],
)
def test_a_divergent_barrier_is_a_deadlock(builds, text, words):
    for order in loader.ORDERS:
        with pytest.raises(loader.EmulationError, match=words):
            block_sum(builds, text, order)


def test_what_does_not_compile_says_so(builds):
    with pytest.raises(RuntimeError, match=r"block_sum.cu does not compile"):
        loader.build(VARIANT, builds, text=broken("float scratch", "flot scratch"))


def rms_norm_backward(builds: Path, text: str) -> np.ndarray:
    chosen = rmsnorm.backward("float32", 512)
    assert chosen["STAGED"]
    x, dy, w = (np.random.default_rng(i).standard_normal((9, 512)).astype(np.float32) for i in range(3))
    dx, partial = np.full((9, 512), np.nan, np.float32), np.full((2, 512), np.nan, np.float32)
    arguments = [x, w[0].copy(), dy, None, np.ones(9, np.float32), dx, partial, np.int32(9)]
    loader.load(chosen, builds, text=text)((2, 1), arguments)
    return dx


def test_an_asynchronous_copy_that_nobody_awaits_has_not_landed(builds):
    text = rmsnorm.backward("float32", 512).text
    assert np.isfinite(rms_norm_backward(builds, text)).all()
    waiting = "if constexpr (STAGED) wait_for_groups<1>();"
    assert waiting in text
    assert np.isnan(rms_norm_backward(builds, text.replace(waiting, ""))).any()


def test_both_scratch_rows_of_the_backward_sum_are_needed(builds):
    # One row would be written by a fast warp for the next row while a slow warp still reads it.
    chosen = rmsnorm.backward("float32", 512)
    text = chosen.text.replace("scratch[parity]", "scratch[0]")
    assert text != chosen.text
    x, dy = (np.random.default_rng(i).standard_normal((9, 512)).astype(np.float32) for i in range(2))
    found = []
    for source in (chosen.text, text):
        for order in loader.ORDERS:
            dx, partial = np.empty((9, 512), np.float32), np.empty((1, 512), np.float32)
            arguments = [x, np.ones(512, np.float32), dy, None, np.ones(9, np.float32), dx, partial, np.int32(9)]
            loader.load(chosen, builds, text=source)((1, 1), arguments, order)
            found.append(dx)
    assert all(np.array_equal(dx, found[0]) for dx in found[:3])
    assert any(not np.array_equal(dx, found[0]) for dx in found[3:])


# What runs under the sanitizer is a process of its own, as its library must be loaded before Python's.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from flopcast.kernels.cross_entropy import variant as cross_entropy
from flopcast.kernels.emulator import loader
from flopcast.kernels.nf4 import variant as nf4
from flopcast.kernels.nf4.format import payload_bytes
from flopcast.kernels.rmsnorm import variant as rmsnorm
from flopcast.kernels.rope import variant as rope
from flopcast.kernels.swiglu import variant as swiglu
from flopcast.kernels.variant import Variant

builds, fault = Path(sys.argv[1]), sys.argv[2]

def array(*shape, dtype=np.float32):
    return np.ones(shape, dtype)

def run(variant, grid, arguments, change=None, text=None):
    text = text or (change(variant.text) if change else None)
    loader.load(variant, builds, sanitized=True, text=text)(grid, arguments, "random")

def norm(hidden, dtype, bits, rows, change=None):
    forward = rmsnorm.forward(dtype, hidden, 2)
    x = array(rows, hidden, dtype=bits)
    arguments = [x, x, x, x[0].copy(), x.copy(), x.copy(), array(rows), np.int32(rows), np.float32(1e-6)]
    run(forward, (-(-rows // forward["ROWS"]), 1), arguments, change)
    backward = rmsnorm.backward(dtype, hidden, True)
    arguments = [x, x[0].copy(), x, x, array(rows), x.copy(), array(2, hidden), np.int32(rows)]
    run(backward, (2, 1), arguments)
    run(rmsnorm.weight_gradient(dtype, hidden), (-(-hidden // 32), 1), [array(2, hidden), x[0].copy(), np.int32(2)])

def turn(q_heads, k_heads, head, half, vector, dtype, bits):
    variant = rope.rope(dtype, q_heads, k_heads, head, half, vector)
    q, k = array(2, 3, q_heads, head, dtype=bits), array(2, 3, k_heads, head, dtype=bits)
    strides = [n // q.itemsize for t in (q, k, q, k) for n in t.strides[:3]]
    table, positions = array(3, half), np.arange(3)
    arguments = [q, k, q.copy(), k.copy(), table, table, positions, np.int64(0), np.int32(3), np.int32(3)]
    arguments.append(np.float32(1))
    run(variant, (-(-3 // variant["TOKENS"]), 2), [*arguments, *map(np.int64, strides)])

def there_and_back(numel, dtype, bits):
    values, payload = array(numel, dtype=bits), np.zeros(int(payload_bytes(numel)), np.uint8)
    groups = -(-numel // 16384)
    run(nf4.quantise(dtype, True), (groups, 1), [values, payload, np.int64(numel)])
    run(nf4.dequantise(dtype, True), (groups, 1), [payload, values, np.int64(numel), np.int64(0), np.int64(0)])

def gate(numel, vector, dtype, bits):
    x, packs = array(numel, dtype=bits), numel // vector
    blocks = -(-packs // (swiglu.THREADS * swiglu.UNROLLED))
    run(swiglu.swiglu("swiglu_forward", dtype, vector), (blocks, 1), [x, x, x.copy(), np.int64(packs)])
    arguments = [x, x, x, x.copy(), x.copy(), np.int64(packs)]
    run(swiglu.swiglu("swiglu_backward", dtype, vector), (blocks, 1), arguments)

def lose(vocabulary, vector, dtype, bits):
    logits, targets = array(3, vocabulary, dtype=bits), np.array([-100, 0, vocabulary - 1])
    statistics = cross_entropy.cross_entropy("cross_entropy_statistics", dtype, vocabulary, vector)
    run(statistics, (3, 1), [logits, targets, array(3), array(3)])
    gradient = cross_entropy.cross_entropy("cross_entropy_gradient", dtype, vocabulary, vector)
    run(gradient, (3, 1), [logits, targets, array(3), array(3), array(3)])

if fault == "none":
    for numel, vector in ((8 * 1500, 8), (8, 8), (33, 1)):
        gate(numel, vector, "bfloat16", np.uint16)
    for vocabulary, vector in ((5000, 8), (101, 1), (1, 1)):
        lose(vocabulary, vector, "bfloat16", np.uint16)
    lose(520, 4, "float32", np.float32)
    for hidden in (64, 65, 1032):
        norm(hidden, "bfloat16", np.uint16, 5)
    norm(200, "float32", np.float32, 3)
    turn(5, 1, 64, 32, 8, "bfloat16", np.uint16)
    turn(3, 1, 66, 20, 2, "float32", np.float32)
    for numel in (1, 100, 16384 + 63):
        there_and_back(numel, "bfloat16", np.uint16)
if fault == "out of bounds":
    norm(1032, "bfloat16", np.uint16, 5, lambda text: text.replace("pack < PACKS", "pack <= PACKS"))
if fault == "shared memory":
    text = 'extern "C" __global__ void f(float* x) { __shared__ float s[4]; '
    text += "s[threadIdx.x] = x[0]; __syncthreads(); x[0] = s[3]; }"
    run(Variant("f.cu", "f", (), 5), (1, 1), [array(1)], text=text)
if fault == "misaligned":
    turn(1, 1, 64, 30, 4, "bfloat16", np.uint16)
print("clean")
"""


def sanitized(builds: Path, fault: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = [loader.compiler(), "-print-file-name=libasan.so"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip("g++ has no address sanitizer here")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # Python itself leaks by design, and its interpreter is not built with the sanitizer.
    environment = {**os.environ, "LD_PRELOAD": path, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    command = [sys.executable, str(program), str(builds), fault]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_no_access_out_of_bounds_or_off_its_alignment(builds, tmp_path):
    done = sanitized(builds, "none", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "clean\n"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("out of bounds", "heap-buffer-overflow"),
        ("shared memory", "global-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_the_sanitizer_catches_a_planted_fault(builds, tmp_path, fault, words):
    done = sanitized(builds, fault, tmp_path)
    assert done.returncode != 0
    assert words in done.stderr
