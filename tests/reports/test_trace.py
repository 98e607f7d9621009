"""The trace: Kineto's shape, the same bytes each time, and what Holistic Trace Analysis reads from it."""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from builders import cluster, plan, small_model

from flopcast import InputError
from flopcast.reports.kernel_names import operation_class
from flopcast.reports.trace import write_traces
from flopcast.reports.trace_comparison import compare_with_trace
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.timeline import Disturbance, Timeline, events, play, streams

SENDS = "send, receive, all-to-all"


def played(**fields: Any) -> Timeline:
    disturbance = Disturbance({3: 0.8}) if fields.pop("slow", False) else None
    chosen = {"strategy": "zero3-node", "num_gpus": 64, "grad_accum": 2, **fields}
    return play(load_model("plamo-13b"), load_cluster("abci-a"), plan(**chosen), disturbance)


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(path.read_bytes())))


def test_has_kinetos_shape(tmp_path: Path) -> None:
    timeline = played(strategy="zero1", num_gpus=64, pp=2, recompute="full")
    first, second = write_traces(timeline, tmp_path / "step.json.gz")
    assert (first.name, second.name) == ("step.rank0.json.gz", "step.rank32.json.gz")
    document = read(second)
    assert document["schemaVersion"] == 1
    assert document["distributedInfo"] == {"backend": "nccl", "rank": 32, "world_size": 64}
    processes = [e["args"] for e in document["traceEvents"] if e["name"] == "process_name"]
    assert processes == [{"name": "rank 32"}]
    kernels = [e for e in document["traceEvents"] if e.get("cat") == "kernel"]
    frame = events(timeline)
    mine = frame[(frame["rank"] == 32) & (frame.end_s > frame.start_s)]
    assert len(kernels) == len(mine)
    assert sum(e["dur"] for e in kernels) == pytest.approx(1e6 * (mine.end_s - mine.start_s).sum(), rel=1e-6)
    assert {e["args"]["stream"] for e in kernels} == {e["tid"] for e in kernels}
    assert all(e["name"].startswith("nccl") == ("Collective name" in e["args"]) for e in kernels)
    assert sum(e["args"].get("flop", 0) for e in kernels) == pytest.approx(mine.flop.sum())


def test_slices_on_a_stream_nest(tmp_path: Path) -> None:
    """Perfetto draws a track's slices inside each other: none may end inside another that began before it."""
    (path,) = write_traces(played(strategy="hsdp", recompute="full"), tmp_path / "step.json.gz")
    slices = [e for e in read(path)["traceEvents"] if e["ph"] == "X"]
    for stream in {e["tid"] for e in slices}:
        open_ends: list[float] = []
        for e in sorted((e for e in slices if e["tid"] == stream), key=lambda e: (e["ts"], -e["dur"])):
            while open_ends and open_ends[-1] <= e["ts"] + 1e-3:
                open_ends.pop()
            end = e["ts"] + e["dur"]
            assert not open_ends or end <= open_ends[-1] + 1e-3
            open_ends.append(end)


def test_the_same_step_gives_the_same_bytes(tmp_path: Path) -> None:
    model, where, p = small_model(), cluster(), plan("zero3", 32)
    written = []
    for name in ("one.json.gz", "two.json.gz"):
        timeline = play(model, where, p, Disturbance(jitter=0.05, seed=7))
        written.append([path.read_bytes() for path in write_traces(timeline, tmp_path / name)])
    assert len(written[0]) == 4
    assert written[0] == written[1]


@pytest.mark.parametrize("fields", [{"slow": True}, {"strategy": "tp8"}, {"strategy": "zero1", "pp": 2}])
def test_holistic_trace_analysis_reads_the_same_shares(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise it rounds every kernel's ends to whole microseconds, inwards.
    monkeypatch.setenv("HTA_DISABLE_NS_ROUNDING", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = "Holistic Trace Analysis is not installed: pip install traceinsight"
        analysis = pytest.importorskip("hta.trace_analysis", reason=reason)
        timeline = played(**fields)
        write_traces(timeline, tmp_path / "step.json.gz")
        found = analysis.TraceAnalysis(trace_dir=str(tmp_path))
        breakdown = found.get_temporal_breakdown(visualize=False).set_index("rank")
        overlap = found.get_comm_comp_overlap(visualize=False).set_index("rank")
    assert len(breakdown) == len(timeline.ranks)
    for row in streams(timeline):
        assert breakdown.idle_time_pctg[row.rank] == pytest.approx(100 * row.idle, abs=0.02)
        assert breakdown.compute_time_pctg[row.rank] == pytest.approx(100 * row.compute, abs=0.02)
        assert breakdown.non_compute_time_pctg[row.rank] == pytest.approx(100 * row.communication, abs=0.02)
        assert overlap.comp_comm_overlap_pctg[row.rank] == pytest.approx(100 * row.overlap, abs=0.02)


def test_a_trace_beside_its_own_timeline_is_the_same(tmp_path: Path) -> None:
    timeline = played()
    (path,) = write_traces(timeline, tmp_path / "step.json")
    comparison = compare_with_trace(timeline, path)
    assert (comparison.rank, comparison.num_steps) == (0, 1)
    assert {row.operations for row in comparison.rows} >= {"gemm", "attention", "all-gather", "reduce-scatter", "step"}
    for row in comparison.rows:
        assert row.ratio == pytest.approx(1.0, rel=1e-3), row


def kineto(kernels: list[tuple[str, float, float]], num_steps: int) -> dict[str, Any]:
    lines: list[dict[str, Any]] = [
        {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": ts, "dur": dur, "args": {"stream": 7}}
        for name, ts, dur in kernels
    ]
    steps = [
        {"ph": "X", "cat": "user_annotation", "name": f"ProfilerStep#{n}", "ts": 0, "dur": 1} for n in range(num_steps)
    ]
    return {"schemaVersion": 1, "distributedInfo": {"rank": 5}, "traceEvents": [*steps, *lines]}


def test_a_real_trace_is_summed_by_class_and_step(tmp_path: Path) -> None:
    kernels = [
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", 0.0, 3e6),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", 3e6, 1e6),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevComm*)", 1e6, 4e6),
        ("void at::native::elementwise_kernel<128, 2>", 5e6, 5e5),
        ("nvjet_hsh_128x256_64x4", 6e6, 2e6),
    ]
    path = tmp_path / "real.json.gz"
    path.write_bytes(gzip.compress(json.dumps(kineto(kernels, 2)).encode()))
    comparison = compare_with_trace(played(), path)
    found = measured(path)
    assert (comparison.rank, comparison.num_steps) == (5, 2)
    assert found["gemm"] == pytest.approx(2.5)
    assert found["attention"] == pytest.approx(0.5)
    assert found["all-gather"] == pytest.approx(2.0)
    assert found["pointwise"] == pytest.approx(0.25)
    assert found["step"] == pytest.approx(4.0)
    assert found["reduce-scatter"] == 0.0


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn", "gemm"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm>", "gemm"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "attention"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "reduce-scatter"),
        ("ncclKernel_SendRecv", "send, receive, all-to-all"),
        ("void at::native::(anonymous namespace)::chunk_cat_cuda_kernel<float, c10::BFloat16>", "copy"),
        ("void at::native::(anonymous namespace)::split_with_sizes_copy_out_contiguous_no_cast_kernel", "copy"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_clone_transpose_3", "pointwise"),
        ("triton_red_fused__to_copy_add_mean_mm_mul_pow_rsqrt_12", "pointwise"),
        ("triton_tem_fused_mm_7", "gemm"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("triton_for_fused_0", "optimizer"),
        ("void gemv2T_kernel_val<int, int, float, float, float>", "gemm"),
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT128x128x64", "gemm"),
        ("void split_embedding_codegen_forward_kernel<float>(fbgemm_gpu::TensorAccessor<float>)", "pointwise"),
        ("ncclDevKernel_Broadcast_RING_LL", "other collectives"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("triton_poi_fused_silu_mul_0", "pointwise"),
        ("rms_norm_forward", "pointwise"),
        # NCCL up to 2.8, 2.14 to 2.18, 2.19 and 2.27 with symmetric memory.
        ("ncclAllReduceRingLLKernel_sum_f16(ncclColl)", "all-reduce"),
        ("ncclKernel_AllReduce_RING_LL_Sum_half(ncclDevComm*, unsigned long, ncclWork*)", "all-reduce"),
        ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)", SENDS),
        ("ncclDevKernel_AllReduce_Sum_bf16_TREE_LL(ncclDevComm*, unsigned long, ncclWork*)", "all-reduce"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", SENDS),
        ("ncclSymkDevKernel_AllGather_LLMC(ncclSymkDevWorkArgs4K)", "all-gather"),
        ("void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16, 16>(c10::BFloat16*)", "all-reduce"),
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*)", "all-reduce"),
        ("userbuffers_fp16_sum_inplace_gpu_rr_rs_oop<8>(int, int, int)", "reduce-scatter"),
        ("void deep_ep::internode::dispatch<false, 4, 8, 1024>(int4*)", SENDS),
        ("void flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<128>>", "attention"),
        ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<cutlass::bfloat16_t>>>", "attention"),
        ("bwd_kernel_dk_dv", "attention"),
        ("void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<int>>", "gemm"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", "gemm"),
        ("void moe::finalizeKernelVecLoad<moe::KernelParams<cutlass::bfloat16_t, 4, true>>", "pointwise"),
        ("bmm_Bfloat16_MxE2m1MxE4m3_Fp32_t128x16x256u2_s3_et128x16", "gemm"),
        ("_matmul_ogs_NNT_bf16xbf16xmxfp4_128x128x128x1_swiglu", "gemm"),
        ("multi_tensor_apply_kernel<TensorListMetadata<2>, CopyFunctor<c10::BFloat16, float>>", "copy"),
        ("void multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor<float>>", "optimizer"),
    ],
)
def test_kernels_are_told_by_their_names(kernel: str, wanted: str) -> None:
    assert operation_class(kernel) == wanted


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a trace"),
        (b"\x1f\x8b broken", "cut short"),
        (gzip.compress(b'{"traceEvents": [' + b"1," * 999, mtime=0)[:20], "cut short"),
        (b'{"traceEvents": [{"ph": "X"', "not a trace"),
        (b"3", "traceEvents"),
        (b"[1, 2]", "no event"),
        (b'[{"cat": "kernel", "ph": "X", "name": "gemm", "ts": 1}]', "kernel 'gemm' has no time"),
        (b'{"traceEvents": [1]}', "no event"),
        (b'{"traceEvents": []}', "no GPU kernel"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "real.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        compare_with_trace(played(), path)


def test_where_a_trace_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.json\.gz"):
        write_traces(played(), tmp_path / "step.txt")
    with pytest.raises(InputError, match="no directory"):
        write_traces(played(), tmp_path / "nowhere" / "step.json.gz")
    assert list(tmp_path.iterdir()) == []


def test_one_kernel_for_all_collectives_is_told_by_what_launched_it(tmp_path: Path) -> None:
    """RCCL's; a trace of PyTorch 2.9 on eight MI300X has these three events for each."""
    document = kineto([("ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)", 0.0, 1e6)], 1)
    document["traceEvents"][-1]["args"]["correlation"] = 62
    called = {"External id": 7, "Collective name": "_allgather_base"}
    document["traceEvents"] += [
        {"ph": "X", "cat": "cpu_op", "name": "record_param_comms", "ts": 0, "dur": 1, "args": called},
        {"ph": "X", "cat": "cuda_runtime", "name": "hipExtLaunchKernel", "args": {"External id": 7, "correlation": 62}},
    ]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(document))
    assert measured(path)["all-gather"] == pytest.approx(1.0)


def test_what_communication_costs_beside_computation(tmp_path: Path) -> None:
    """Streams and GPUs overlap: 4 s of products, 3 s of gathers of which 1 s beside them, 1 s of nothing."""
    kernels = [("gemm", 0.0, 4e6), ("ncclDevKernel_AllGather", 3e6, 3e6), ("Memset (Device)", 7e6, 1e6)]
    document = kineto(kernels, 1)
    document["traceEvents"] += [dict(e, args={"stream": 7, "device": 1}) for e in document["traceEvents"][1:]]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(document))
    found = measured(path)
    assert found["computing"] == pytest.approx(5.0)
    assert found["exposed communication"] == pytest.approx(2.0)
    assert found["idle"] == pytest.approx(1.0)
    assert found["step"] == pytest.approx(8.0)
    assert found["all-gather"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("marks", "wanted"), [(["Optimizer.step#AdamW.step"] * 3, (3, "optimizer")), ([], (1, "nothing"))]
)
def test_steps_without_a_schedule(tmp_path: Path, marks: list[str], wanted: tuple[int, str]) -> None:
    document = kineto([("gemm", 0.0, 3e6)], 0)
    document["traceEvents"] += [{"ph": "X", "cat": "user_annotation", "name": name, "ts": 0} for name in marks]
    path = tmp_path / "real.json"
    path.write_text(json.dumps(document))
    comparison = compare_with_trace(played(), path)
    assert (comparison.num_steps, comparison.steps_by) == wanted


def measured(path: Path) -> dict[str, float]:
    return {row.operations: row.measured_s for row in compare_with_trace(played(), path).rows}
