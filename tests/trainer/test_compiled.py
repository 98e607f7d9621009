"""A compiled plan against the same plan op by op: what torch.compile is given, and the compiler itself for the loss."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from builders import small_model
from torch._dynamo.utils import counters

from flopcast.kernels.backend import backend
from flopcast.simulator.plan import Plan, Recompute
from flopcast.trainer import loss as loss_module
from flopcast.trainer import pointwise
from flopcast.trainer.engine import OptimizerSettings, build
from flopcast.trainer.loss import IGNORED, cross_entropy

MODEL = small_model(hidden=64, num_heads=4, num_kv_heads=2, intermediate=96, num_layers=3, vocab_size=80)
# torch.compile instantiates torch.autograd.Function and looks at .grad itself, and PyTorch warns of both.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """``compile_with("aot_eager")``: the graphs that a compiler is given, run op by op; a graph break is an error."""

    def choose(backend: str) -> None:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))

    loss_module._compiled.cache_clear()
    torch.compiler.reset()
    counters.clear()
    yield choose
    loss_module._compiled.cache_clear()
    torch.compiler.reset()


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(compiled: bool, recompute: Recompute, packed: bool) -> list[float]:
    """Losses and gradient norms of some steps, and the loss of an evaluation."""
    plan = Plan("ddp", 1, 24, micro_batch=2, grad_accum=2, compiled=compiled, recompute=recompute)
    cpu, settings = torch.device("cpu"), OptimizerSettings(lr=1e-3)
    engine = build(
        MODEL, plan, gpus_per_node=1, device=cpu, dtype=torch.float32, seed=0, optimizer=settings, z_loss=1e-3
    )
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(3):
        for number in range(plan.grad_accum):
            tokens = torch.randint(80, (2, 25), generator=generator)
            positions = (torch.arange(24) % (7 + number)).repeat(2, 1) if packed else None
            loss = engine.accumulate(tokens[:, :-1], tokens[:, 1:], positions, is_last=number == 1)
            found.append(float(loss))
        found.append(float(engine.step()))
    return [*found, float(engine.evaluate(tokens[:, :-1], tokens[:, 1:], positions))]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("recompute", "packed"), [("none", False), ("none", True), ("full", True), ("selective", True)]
)
def test_a_compiled_run_learns_the_same(
    compile_with: Callable[[str], None], recompute: Recompute, packed: bool
) -> None:
    compile_with("aot_eager")
    found = trained(True, recompute, packed)
    assert not counters["graph_break"]
    # One graph for all layers, one to evaluate them, the loss both ways and its evaluation.
    assert counters["stats"]["unique_graphs"] == 5
    assert found == pytest.approx(trained(False, recompute, packed), abs=2e-5)


def test_the_search_for_cupy_is_no_part_of_a_graph(compile_with: Callable[[str], None]) -> None:
    compile_with("aot_eager")
    x = torch.randn(3)
    found = torch.compile(lambda: x + float(pointwise.kernels_run()))()
    assert torch.equal(found, x + float(backend().name == "cupy"))
    assert not counters["graph_break"]


# What the C++ compiler makes of it, where there is one; a whole layer would take it half a minute.
INDUCTOR = pytest.param(
    "inductor",
    0.1,
    marks=[
        pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler"),
        pytest.mark.filterwarnings("ignore:.*torch.jit.:DeprecationWarning"),
    ],
)


@pytest.mark.parametrize(("backend", "z_loss"), [("aot_eager", 0.0), ("aot_eager", 0.1), INDUCTOR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_loss_leaves_its_gradient_in_the_logits(
    compile_with: Callable[[str], None], backend: str, dtype: torch.dtype, z_loss: float
) -> None:
    compile_with(backend)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 50, generator=generator).mul(3).to(dtype)
    targets = torch.randint(0, 50, (12,), generator=generator)
    targets[3] = targets[11] = IGNORED
    exact, leaf = (logits.clone().requires_grad_() for _ in range(2))
    expected = cross_entropy(exact, targets, z_loss)
    expected.backward()
    computed = leaf * 1
    found = cross_entropy(computed, targets, z_loss, compiled=True)
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(leaf.grad, exact.grad)
    assert leaf.grad is not None
    assert torch.equal(computed.detach(), leaf.grad)


def test_a_compiled_loss_without_targets_is_nothing(compile_with: Callable[[str], None]) -> None:
    compile_with("aot_eager")
    logits = torch.randn(4, 9, requires_grad=True)
    loss = cross_entropy(logits * 1, torch.full((4,), IGNORED), 0.1, compiled=True)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(4, 9))  # type: ignore[arg-type]
