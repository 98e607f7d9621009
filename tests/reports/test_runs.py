"""Rows of a table of runs: what is read, what is assumed and said, what is refused and why."""

from pathlib import Path
from typing import Any

import pytest
from builders import RUN

from flopcast import InputError
from flopcast.reports.frameworks import framework_of
from flopcast.reports.runs import Run, express, published_runs, read_runs


def changed(**cells: Any) -> Run:
    return express({**RUN, **cells})


def test_a_complete_row_becomes_its_plan() -> None:
    run = changed()
    assert not run.skipped
    assert run.model is not None
    assert run.model.num_parameters == 6_738_415_616
    plan, cluster = run.plan, run.cluster
    assert plan is not None
    assert cluster is not None
    assert (plan.parameter_shard, plan.gradient_shard, plan.optimizer_shard) == (64, 64, 64)
    assert (plan.micro_batch, plan.grad_accum, plan.recompute, plan.attention) == (2, 2, "full", "flash2")
    assert cluster.node_bytes_per_s == pytest.approx(200e9)
    assert run.share_of_step == 1.0


def test_blanks_are_filled_and_said() -> None:
    run = changed(recompute=None, node_gbit=float("nan"), attention="", vocab=None)
    assert not run.skipped
    said = "; ".join(run.assumed)
    for words in ("recompute none", "node_gbit 1600", "attention flash2", "vocab 51200"):
        assert words in said


def test_words_for_nothing_are_blanks() -> None:
    assert (
        changed(recompute="unknown", node_gbit="-", vocab=" ").assumed
        == changed(recompute=None, node_gbit=None, vocab=None).assumed
    )


def test_layers_from_the_models_name() -> None:
    run = changed(n_layers=None, model_name="llama 7B")
    assert run.model is not None
    assert run.model.num_layers in (33, 34)  # 7e9 is a rounded 6.74e9
    assert any("n_layers" in words for words in run.assumed)


@pytest.mark.parametrize(
    ("cells", "shards"),
    [
        ({"sharding": "ddp"}, (1, 1, 1)),
        ({"sharding": "zero1", "shard_group_size": 8}, (1, 1, 8)),
        ({"sharding": "ZeRO-2"}, (1, 64, 64)),
        ({"sharding": "fsdp_hybrid", "shard_group_size": 8}, (8, 8, 8)),
        ({"sharding": "FULL_SHARD"}, (64, 64, 64)),
        ({"sharding": "HYBRID_SHARD"}, (8, 8, 8)),
        ({"sharding": "MiCS", "shard_group_size": 16}, (16, 16, 16)),
        ({"sharding": "ZeRO++"}, (8, 64, 64)),
        ({"sharding": "Megatron-FSDP", "framework": "Megatron-Core"}, (64, 64, 64)),
        ({"sharding": "SHARD_GRAD_OP"}, (1, 64, 64)),
        ({"sharding": "distributed optimizer"}, (1, 1, 64)),
        # Nobody gathers or reduces once per micro-batch of a pipeline.
        ({"sharding": "zero2", "pp": 4, "micro_batch": 1}, (1, 1, 16)),
        ({"sharding": "megatron", "framework": "NeMo 24.07 (Megatron-Core)"}, (1, 1, 64)),
        ({"sharding": "megatron", "framework": "Megatron-LM (2021)"}, (1, 1, 1)),
    ],
)
def test_shardings(cells: dict[str, Any], shards: tuple[int, int, int]) -> None:
    plan = changed(**cells).plan
    assert plan is not None
    assert (plan.parameter_shard, plan.gradient_shard, plan.optimizer_shard) == shards


@pytest.mark.parametrize(
    "cells",
    [
        {"measured_tokens_per_s_per_gpu": 4096 * 256 / 10 / 64},
        {"measured_tokens_per_s": "104,857.6 tokens/s"},
        {"measured_samples_per_s": "25.6 samples/s"},
        {"measured_samples_per_s_per_gpu": 0.4},
    ],
)
def test_rates_in_place_of_seconds(cells: dict[str, Any]) -> None:
    assert RUN["seq_len"] == 4096
    assert RUN["global_batch_seqs"] == 256
    assert changed(measured_step_s=None, **cells).measured_step_s == pytest.approx(10.0)


def test_an_unknown_sharding_is_said() -> None:
    assert any("'sharded by hand' is not known" in words for words in changed(sharding="sharded by hand").assumed)
    assert "attention flash2: 'sparse' is not known" in changed(attention="sparse").assumed
    assert "schedule 1f1b: 'dualpipe' is not known" in changed(pp=2, schedule="dualpipe").assumed
    assert not any("not known" in words for words in changed(sharding="DDP").assumed)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"framework": "torchtitn"}, "framework fsdp2: 'torchtitn' is not known"),
        ({"framework": "own", "tp": 8}, "framework megatron: 'own' is not known"),
        ({"grad_accum": 7}, "grad_accum 2: 7 passes of 2 on 64 ranks are not 256 sequences"),
        ({"n_gpus": 60, "global_batch_seqs": 240}, "gpus_per_node 6: 60 GPUs do not fill nodes of 8"),
        ({"shard_group_size": 48}, "shard_group_size 64: 48 does not divide the 64 data-parallel ranks"),
        ({"mlp_type": "swigloo"}, "mlp_type gelu: 'swigloo' is not known"),
        ({"tp": 2, "sequence_parallel": "flase"}, "sequence_parallel 1: 'flase' is not known"),
        ({"n_heads": 33, "n_kv_heads": 33}, "head_dim 124: 33 heads do not divide a hidden size of 4096"),
    ],
)
def test_what_stands_against_a_cell_is_said(cells: dict[str, Any], words: str) -> None:
    run = changed(**cells)
    assert run.doubts == [words]
    assert words in run.assumed


def test_what_people_write_for_a_known_value_is_no_doubt() -> None:
    for cells in (
        {"grad_accum": 2, "precision": "BF16-mixed", "recompute": "Activation checkpointing", "n_gpus": "64.0"},
        {"framework": "PyTorch FSDP", "vocab": "31.25k", "mlp_type": "SwiGLU", "torch_compile": "max-autotune"},
        {"global_batch_seqs": 244.14, "grad_accum": 2},  # a million tokens
        {"n_gpus": 4, "global_batch_seqs": 16},  # in a node of 8
    ):
        run = changed(**cells)
        assert not run.skipped
        assert not run.doubts


def test_an_optimizer_on_the_host() -> None:
    for cells in ({"sharding": "ZeRO-2-Offload"}, {"framework": "DeepSpeed, CPU offload"}):
        plan = changed(**cells).plan
        assert plan is not None
        assert plan.state_bytes == 0


def test_a_pipeline_is_filled_with_single_sequences_where_a_table_does_not_say() -> None:
    cells = {"n_gpus": 64, "micro_batch": None, "grad_accum": None, "global_batch_seqs": 256, "sharding": "zero1"}
    alone, piped = changed(**cells).plan, changed(**cells, pp=8).plan
    assert alone is not None
    assert piped is not None
    assert (alone.micro_batch, alone.grad_accum) == (4, 1)
    assert (piped.micro_batch, piped.grad_accum) == (1, 32)


@pytest.mark.parametrize(
    ("framework", "sharding", "bits"),
    [
        ("fms-fsdp (PyTorch FSDP1)", "fsdp_full", 16),
        ("PyTorch DDP", "ddp", 32),
        ("torchtitan (FSDP2)", "fsdp_full", 32),
        ("DeepSpeed", "zero3", 16),
        ("nanotron", "zero1", 32),
        ("Megatron-DeepSpeed", "zero1", 32),  # the row is in bf16, whose gradients BF16_Optimizer holds in fp32
    ],
)
def test_the_width_of_a_reduction_is_the_softwares(framework: str, sharding: str, bits: int) -> None:
    plan = changed(framework=framework, sharding=sharding).plan
    assert plan is not None
    assert plan.gradient_bits == bits


def test_an_unversioned_flash_attention_is_the_one_the_software_was_built_with() -> None:
    kernels = {name: changed(framework=name, attention="flash").plan for name in ("InternEvo", "torchtitan", "other")}
    assert [plan and plan.attention for plan in kernels.values()] == ["flash1", "flash2", "flash2"]


def test_a_local_batch_in_a_pipeline_is_cut_into_micro_batches() -> None:
    """torchtitan makes as many as there are stages, if that divides the batch; of others the smallest are assumed."""
    cells = {"pp": 8, "n_gpus": 64, "sharding": "fsdp_full"}
    for framework, batch, passes in (("torchtitan", 32, 8), ("torchtitan", 12, 12), ("Megatron-LM", 32, 32)):
        run = changed(**cells, framework=framework, micro_batch=batch, global_batch_seqs=8 * batch)
        assert run.plan is not None
        assert (run.plan.micro_batch, run.plan.grad_accum) == (batch // passes, passes)
        assert any(f"a local batch of {batch} passes through the pipeline in {passes}" in said for said in run.assumed)


def test_an_interleaved_schedule_has_two_stages_a_rank_where_a_table_does_not_say() -> None:
    plan = changed(pp=8, n_gpus=64, schedule="Interleaved 1F1B", micro_batch=1, sharding="ddp").plan
    assert plan is not None
    assert (plan.schedule, plan.virtual_pp) == ("interleaved", 2)


def test_a_pipeline_that_would_idle_for_long_is_taken_to_be_interleaved() -> None:
    cells = {"pp": 8, "n_gpus": 64, "micro_batch": 1, "sharding": "ddp"}
    for framework, batch, chunks in (
        ("NeMo 25.04", 64, 2),  # 7 / 8 of its computing; 32 layers, two in a chunk
        ("own", 64, 2),
        ("NeMo 25.04", 160, 1),  # 7 / 20
        ("Megatron-DeepSpeed", 64, 1),
        ("torchtitan", 64, 1),
    ):
        run = changed(**cells, framework=framework, global_batch_seqs=batch)
        assert run.plan is not None
        assert run.plan.virtual_pp == chunks, framework
        assert f"vpp {chunks}" in run.assumed
    for column in ({"vpp": 1}, {"schedule": "1f1b"}):
        plan = changed(**cells, **column, framework="NeMo 25.04", global_batch_seqs=64).plan
        assert plan is not None
        assert (plan.schedule, plan.virtual_pp) == ("1f1b", 1)


def test_a_mixture_runs_as_its_software_does_or_as_the_table_says() -> None:
    mixture = {"num_experts": 64, "experts_per_token": 4, "tp": 2, "n_gpus": 64, "micro_batch": 1, "sharding": "zero1"}
    for cells, dispatcher, whole in (
        ({"framework": "Megatron-Bridge (26.06 NeMo Container)", "ep": 8}, "deepep", True),
        ({"framework": "NeMo 24.07", "ep": 8}, "alltoall", True),
        ({"framework": "Megatron-LM", "ep": 8}, "alltoall", False),
        ({"framework": "Megatron-LM", "ep": 64}, "alltoall", True),  # of 32 data-parallel ranks
        ({"framework": "Megatron-LM", "ep": 8, "expert_tp": 1, "dispatcher": "HybridEP"}, "deepep", True),
        ({"framework": "Megatron-Bridge", "ep": 8, "expert_tp": 2, "dispatcher": "all-to-all"}, "alltoall", False),
    ):
        plan = changed(**mixture, **cells, sequence_parallel=1).plan
        assert plan is not None
        assert (plan.dispatcher, plan.whole_experts) == (dispatcher, whole), cells
    said = changed(**mixture, ep=8, dispatcher="pigeon", sequence_parallel=1).assumed
    assert "dispatcher alltoall: 'pigeon' is not known" in said


def test_cuda_graphs_are_as_the_table_or_the_recipes_of_the_release_have_them() -> None:
    mixture = {"num_experts": 64, "experts_per_token": 4, "ep": 8, "n_gpus": 64, "micro_batch": 1, "sharding": "zero1"}
    newest = "Megatron-Bridge 26.06"
    for cells, graphs, hidden in (
        ({"framework": newest, "precision": "fp8", "gpu": "B200"}, "full", True),
        ({"framework": newest, "precision": "fp8", "gpu": "B200", "cuda_graphs": "none"}, "none", True),
        ({"framework": newest, "precision": "fp8", "gpu": "B200", "overlap_expert": "no"}, "full", False),
        ({"framework": newest, "precision": "fp8 current scaling", "gpu": "B200"}, "none", False),
        ({"framework": newest, "precision": "fp8", "gpu": "B200", "cuda_graphs": "disabled"}, "none", True),
        ({"framework": newest, "precision": "fp8", "gpu": "B200", "recompute": "full"}, "full", False),
        ({"framework": "Megatron-Bridge (26.08 NeMo Container)", "precision": "fp8", "gpu": "B200"}, "full", True),
        ({"framework": "Megatron-Bridge v0.5.1", "precision": "fp8", "gpu": "B200"}, "full", True),
        ({"framework": "Megatron-Bridge v0.4.2", "precision": "fp8", "gpu": "B200"}, "none", False),
        ({"framework": "Megatron-Bridge (25.11 NeMo Container)", "precision": "fp8", "gpu": "B200"}, "none", False),
        ({"framework": "Megatron-Bridge", "precision": "fp8", "gpu": "B200"}, "none", False),
        ({"framework": newest, "precision": "fp8", "gpu": "H100"}, "none", False),
        ({"framework": newest, "precision": "bf16", "gpu": "B200"}, "none", False),
        ({"framework": "Megatron-Bridge 26.04.01", "precision": "fp8", "gpu": "B200"}, "none", False),
        ({"framework": "Megatron-LM", "cuda_graphs": "transformer_engine"}, "partial", False),
        ({"framework": "Megatron-LM", "cuda_graphs": "full_iteration", "overlap_expert": 1}, "full", True),
    ):
        run = changed(**mixture, **({"recompute": "none", "dispatcher": "deepep"} | cells))
        assert run.plan is not None, (cells, run.skipped)
        assert (run.plan.cuda_graphs, run.plan.overlap_expert) == (graphs, hidden), cells
    dense = changed(framework=newest, precision="fp8", gpu="B200")
    assert dense.plan is not None
    assert (dense.plan.cuda_graphs, dense.plan.overlap_expert) == ("none", False)
    assert not any("cuda_graphs" in words for words in dense.assumed)
    said = changed(**mixture, framework="Megatron-LM", cuda_graphs="sometimes").assumed
    assert "cuda_graphs none: 'sometimes' is not known" in said
    alone = changed(**mixture, framework="Megatron-LM", overlap_expert=1, pp=2, recompute="none")
    assert alone.plan is not None
    assert not alone.plan.overlap_expert
    assert any(words.startswith("overlap_expert 0") for words in alone.doubts)


@pytest.mark.parametrize("cells", [{"cuda_graphs": "attn"}, {"overlap_expert": 1}])
def test_what_excludes_full_recomputation_leaves_the_rest_of_the_table_alone(cells: dict[str, Any]) -> None:
    """Where recomputation is not stated, a plan that would not fit is looked at with all of it."""
    mixture = {"num_experts": 64, "experts_per_token": 4, "ep": 8, "n_gpus": 64, "micro_batch": 64, "sharding": "zero1"}
    run = changed(**mixture, **cells, framework="Megatron-LM", recompute=None, global_batch_seqs=8192)
    assert not run.skipped
    assert run.plan is not None
    assert run.plan.recompute != "full"


def test_torchtitan_compiles_what_runs_in_8_bits() -> None:
    for framework, precision, torch_compile, compiled in (
        ("torchtitan", "Float8", None, True),
        ("torchtitan", "Float8", 0, False),
        ("torchtitan", "bf16", None, False),
        ("torchtitan, torch.compile", "bf16", None, True),
        ("torchtitan without compile", "bf16", None, False),
        ("torchtitan, torch.compile", "bf16", "no", False),
        ("Megatron-LM", "bf16", 0, True),
        ("x", "fp8", None, False),
    ):
        cells = {"framework": framework, "precision": precision, "torch_compile": torch_compile}
        plan = changed(gpu="H100", **cells).plan
        assert plan is not None
        assert plan.compiled == compiled, cells


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"measured_step_s": None}, "measured_step_s is blank"),
        ({"measured_step_s": -1}, "must be positive"),
        ({"gpu": "H200-14GB"}, "H200"),
        ({"hidden": None, "model_name": "unheard-of"}, "hidden is blank"),
        ({"n_gpus": "many"}, "n_gpus is 'many'"),
        ({"tp": 3}, "does not divide"),
        ({"tp": 0}, "tp is 0; write a whole number of at least 1"),
        ({"n_gpus": 64.5}, "n_gpus is 64.5; write a whole number"),
        ({"n_gpus": float("inf")}, "n_gpus is inf"),
        ({"seq_len": 8192.5}, "seq_len is 8192.5"),
        ({"gpus_per_node": 0}, "gpus_per_node is 0"),
        ({"node_gbit": -5}, "node_gbit is -5"),
        ({"global_batch_seqs": 0}, "global_batch_seqs is 0"),
        ({"sharding": "zero9"}, "sharding is 'zero9'"),
        ({"recompute": "ful"}, "recompute is 'ful'; write none, selective, full, or"),
        ({"precision": "bf17"}, "precision is 'bf17'; write bf16, fp16 or fp8"),
        ({"tp": 64}, "does not divide"),
        ({"pp": 2, "vpp": 32, "micro_batch": 1}, "one stage per layer"),
        ({"precision": "nvfp4"}, "4-bit products"),
        ({"global_batch_seqs": None}, "global_batch_seqs is blank"),
    ],
)
def test_refused_with_the_reason(cells: dict[str, Any], words: str) -> None:
    run = changed(**cells)
    assert words in run.skipped
    assert run.plan is None


def test_shapes_that_a_table_leaves_out_are_the_usual_ones() -> None:
    run = changed(n_heads=None, n_kv_heads=None, ffn_hidden=None)
    assert run.model is not None
    assert run.model.num_parameters == 6_738_415_616  # LLaMA's own rule makes LLaMA-7B
    assert {"n_heads 32", "ffn_hidden 11008"} <= set(run.assumed)
    plain = changed(mlp_type="gelu", ffn_hidden=None)
    assert "ffn_hidden 16384" in plain.assumed


def test_a_rate_without_a_batch_is_forecast_with_one_and_says_so() -> None:
    blank = {
        "measured_step_s": None,
        "global_batch_seqs": None,
        "grad_accum": None,
        "measured_tokens_per_s_per_gpu": 2000,
    }
    run = changed(**blank, micro_batch=2)
    assert run.plan is not None
    assert (run.plan.micro_batch, run.plan.grad_accum) == (2, 8)
    assert run.measured_step_s == pytest.approx(2 * 8 * run.plan.seq_len / 2000)
    assert any("global_batch_seqs" in words for words in run.assumed)


def test_a_rate_stands_for_the_step() -> None:
    run = changed(measured_step_s=None, measured_tokens_per_s_per_gpu=1024)
    assert run.measured_step_s == 256 * 4096 / (1024 * 64)
    batch = changed(global_batch_seqs=None, grad_accum=2)
    assert batch.plan is not None
    assert batch.plan.global_batch_sequences == 256
    assert batch.share_of_step == 1.0


@pytest.mark.parametrize(
    ("cells", "overlaps"),
    [
        ({"framework": "torchtitan"}, False),
        ({"framework": "torchtitan (FSDP2), async TP"}, True),
        ({"framework": "torchtitan (FSDP2), async TP", "gpu": "H100-SXM", "precision": "fp8"}, False),
        ({"framework": "Megatron-LM, TP overlap", "gpu": "H100-SXM", "precision": "fp8"}, True),
        ({"framework": "Megatron-LM", "notes": "--tp-comm-overlap, bf16"}, True),
        ({"framework": "Megatron-LM", "notes": "without TP overlap"}, False),
        ({"framework": "Megatron-LM", "overlap_tensor": "yes"}, True),
        ({"framework": "NeMo 24.07"}, True),
        ({"framework": "NeMo 24.07", "overlap_tensor": 0}, False),
        ({"framework": "torchtitan, async TP", "tp": 1}, False),
    ],
)
def test_chunks_of_tensor_parallel_communication_are_read_where_they_are_said(
    cells: dict[str, Any], overlaps: bool
) -> None:
    plan = changed(**{"tp": 2, "sequence_parallel": 1, **cells}).plan
    assert plan is not None
    assert plan.overlap_tensor == overlaps


@pytest.mark.parametrize(
    ("framework", "attention", "fused", "recompute"),
    [
        ("MaxText (JAX)", "cudnn", True, "full"),
        ("Paxml", "cudnn", True, "none"),
        ("NeMo Megatron 22.12", "unfused", True, "none"),
        ("NeMo 24.03", "flash2", True, "none"),
        ("NeMo 24.07", "cudnn", True, "none"),
        ("NeMo 24.12", "cudnn", True, "none"),
        ("Unsloth", "flash2", True, "none"),
        ("PyTorch FSDP, fused kernels of flash-attention", "flash2", True, "none"),
        ("PyTorch FSDP, no fused kernels", "flash2", False, "none"),
        ("PyTorch FSDP1", "flash2", False, "none"),
        ("HF Trainer", "flash2", False, "none"),
        ("MosaicML Composer", "flash2", False, "none"),
        ("flopcast", "flash2", True, "none"),
    ],
)
def test_what_software_runs_by_itself(framework: str, attention: str, fused: bool, recompute: str) -> None:
    run = changed(framework=framework, attention=None, recompute=None)
    assert run.plan is not None
    assert (run.plan.attention, run.plan.fused_kernels, run.plan.recompute) == (attention, fused, recompute)
    assert not run.doubts


def test_nvlink_across_a_rack_makes_one_node() -> None:
    run = changed(gpu="GB200", gpus_per_node=4, n_gpus=256, node_gbit=1600)
    assert run.cluster is not None
    assert run.cluster.gpus_per_node == 64
    assert run.cluster.node_bytes_per_s == pytest.approx(16 * 200e9)


def test_embedding_and_head_may_stand_in_chunks_of_their_own() -> None:
    run = changed(pp=2, vpp=17, micro_batch=1, sharding="ddp")
    assert run.plan is not None
    assert run.plan.virtual_pp == 16
    assert any("vpp 16" in words for words in run.assumed)
    counted = changed(framework="Megatron-LM", n_layers=30, pp=4, vpp=8, micro_batch=1, sharding="ddp")
    assert counted.plan is not None
    assert counted.plan.virtual_pp == 8
    assert not any("vpp" in words for words in counted.assumed)


def test_torchtitan_keeps_parameters_gathered_in_a_pipeline() -> None:
    plan = changed(pp=8, micro_batch=32).plan
    assert plan is not None
    assert (plan.parameter_shard, plan.gradient_shard, plan.optimizer_shard) == (1, 1, 8)


def test_the_published_table_is_read_whole() -> None:
    runs = published_runs()
    assert len(runs) == 1138
    refused = [run for run in runs if run.skipped]
    assert not refused


def test_not_a_table(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name, words in (("binary.csv", "not a CSV"), ("other.csv", "are missing"), ("none.csv", "no such file")):
        with pytest.raises(InputError, match=words):
            read_runs(tmp_path / name)
    with pytest.raises(InputError, match="not a CSV"):
        read_runs(tmp_path)


def test_frameworks_by_name() -> None:
    assert not framework_of("Megatron-DeepSpeed").overlap
    assert framework_of("NeMo 24.07 (Megatron-Core)").overlap_tensor
    assert framework_of("Megatron-Bridge (25.11 NeMo Container)") == framework_of("Megatron-Bridge")
    assert framework_of("Megatron-Bridge").overlap_tensor
    assert framework_of("Megatron-LM (FlagPerf)") != framework_of("NeMo 25.04")
    assert framework_of("GPT-NeoX") == framework_of("Megatron-DeepSpeed")
    assert framework_of("DeepSpeed with Megatron-LM 1.1.5") == framework_of("Megatron-DeepSpeed")
    assert framework_of("MaxText (JAX)").jit_fused
    assert framework_of("something new").overlap
    assert framework_of("something new").engine == "fsdp2"
    assert framework_of("something new", tp=8).engine == "megatron"
    assert framework_of("torchtitan", tp=8).engine == "torchtitan"
    assert framework_of("torchtitan", dated="docs/performance.md (2024-04, @157a12c56)").engine == "torchtitan"
    assert framework_of("torchtitan", dated="llama3_h100_202412_torchtitan.md").engine == "torchtitan"
    assert framework_of("torchtitan", dated="benchmarks of 2025-06").engine == "torchtitan-2025"
    assert framework_of("torchtitan 2026").engine == "torchtitan-2025"
    assert framework_of("MegaScale").overlap_tensor
    assert framework_of("NeMo AutoModel").engine == "fsdp2"


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *(("NeMo 23.11", "megatron"), ("NeMo 24.07", "megatron"), ("Megatron-LM", "megatron")),
        *(("NeMo 25.02", "nemo"), ("MLPerf Training 4.1, NeMo", "nemo"), ("Megatron-Bridge", "megatron-bridge")),
    ],
)
def test_parameters_are_gathered_in_8_bits_since_nemo_2(name: str, engine: str) -> None:
    assert framework_of(name).engine_in("fp8") == engine
