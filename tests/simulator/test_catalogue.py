"""The catalogue: published parameter counts, datasheet figures, names, and what is marked as assumed."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from flopcast.errors import InputError
from flopcast.simulator.catalogue import (
    cluster_names,
    generic_cluster,
    gpu_names,
    load_cluster,
    load_gpu,
    load_model,
    model_names,
)
from flopcast.simulator.specification import catalogue_gpu
from flopcast.simulator.specification.document import parse_toml

# The names in the column "gpu" of published run tables (training_runs.csv).
RUN_TABLE_GPUS = (
    "A100-80GB",
    "A800-80GB",
    "B200",
    "H100-80GB",
    "H100-96GB-HBM2e",
    "H200-141GB",
    "H800-80GB",
)


@pytest.mark.parametrize("name", model_names())
def test_parameter_counts_are_those_published(name: str) -> None:
    """Exact where the published count is exact, else within half of what it is rounded to."""
    model = load_model(name)
    published, rounded_to = (model.published[k] for k in ("num_parameters", "num_parameters_rounded_to"))
    assert abs(model.num_parameters - published) <= rounded_to / 2
    assert model.source


@pytest.mark.parametrize("name", [name for name in model_names() if load_model(name).num_experts])
def test_a_token_uses_the_parameters_published(name: str) -> None:
    """To the last digit given; some count the embedding, which is looked up and not multiplied, and some do not."""
    model = load_model(name)
    published, rounded_to = (model.published[k] for k in ("num_active", "num_active_rounded_to"))
    with_embedding = model.num_active_parameters
    counts = (with_embedding, with_embedding - model.vocab_size * model.hidden)
    assert min(abs(count - published) for count in counts) <= rounded_to


def test_most_published_counts_are_exact() -> None:
    exact = [name for name in model_names() if load_model(name).published["num_parameters_rounded_to"] == 0]
    assert len(exact) > len(model_names()) / 2
    assert {"plamo-13b", "llama-65b", "gpt-neox-20b", "bloom-176b", "llama-3.1-405b"} <= set(exact)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("plamo-13b", 13_099_545_600),
        ("llama-65b", 65_285_660_672),
        ("gpt-neox-20b", 20_554_567_680),
        ("llm-jp-13b", 12_855_592_960),
    ],
)
def test_the_first_four_models(name: str, parameters: int) -> None:
    assert load_model(name).num_parameters == parameters


@pytest.mark.parametrize("spelling", ["LLaMA-65B", "llama_65b", "llama 65b", "LLAMA65B", " llama-65b "])
def test_names_are_found_however_they_are_spelt(spelling: str) -> None:
    assert load_model(spelling).name == "LLaMA-65B"


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown model 'plamo-12b'; did you mean 'plamo-13b'"):
        load_model("plamo-12b")
    with pytest.raises(InputError, match="unknown model 'llama3'; did you mean 'llama-3-70b' or 'llama-3-8b'"):
        load_model("llama3")
    with pytest.raises(InputError, match="unknown cluster 'abci'; did you mean 'abci-"):
        load_cluster("abci")
    with pytest.raises(InputError, match="unknown GPU 'a100'; did you mean 'a100-40gb' or 'a100-80gb'"):
        load_gpu("a100")
    with pytest.raises(InputError, match=r"model 'meta-llama/Llama-2-7b-hf': no such file.*'llama-2-7b'"):
        load_model("meta-llama/Llama-2-7b-hf")
    with pytest.raises(InputError, match=r"missing\.json: no such file"):
        load_model("missing.json")
    with pytest.raises(InputError, match="unknown model ''"):
        load_model("")
    with pytest.raises(InputError, match="unknown model"):
        load_model("x" * 5000)


def test_paths_are_read_as_files_and_names_win_over_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = files("flopcast.simulator.catalogue") / "models" / "gpt2.toml"
    (tmp_path / "mine.toml").write_text(entry.read_text().replace('"GPT-2"', '"mine"'))
    config = Path(__file__).parent / "configs" / "gpt2.json"
    (tmp_path / "llama-7b").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(config.read_text())
    monkeypatch.chdir(tmp_path)
    assert load_model("mine.toml").name == "mine"
    assert load_model(tmp_path / "mine.toml").num_parameters == 124_439_808
    assert load_model(config).num_parameters == 124_439_808
    assert load_model("other").name == "other"
    assert load_model("llama-7b").name == "LLaMA-7B"
    with pytest.raises(InputError, match=r"is a directory without a config\.json"):
        load_model(tmp_path)


def test_gpus_carry_their_datasheets_dense_figures() -> None:
    a100, h100 = load_gpu("a100-40gb"), load_gpu("H100")
    assert (a100.tensor_flop_per_s, a100.memory_bytes, a100.memory_bytes_per_s, a100.power_w) == (
        312e12,
        40 * 2**30,
        1555e9,
        400.0,
    )
    assert a100.fp8_flop_per_s == 0.0
    assert h100.fp8_flop_per_s == pytest.approx(2 * h100.tensor_flop_per_s, rel=1e-3)
    hbm2e = load_gpu("H100-96GB-HBM2e")
    assert (hbm2e.memory_bytes_per_s, hbm2e.power_w) == (2.4e12, 500.0)


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_is_complete_and_plausible(name: str) -> None:
    gpu = load_gpu(name)
    assert gpu.name == name == name.lower()
    assert 60e12 <= gpu.tensor_flop_per_s <= 3e15
    assert gpu.fp8_flop_per_s == 0 or 1.9 < gpu.fp8_flop_per_s / gpu.tensor_flop_per_s < 2.1
    assert 16 * 2**30 <= gpu.memory_bytes <= 300 * 2**30
    assert 0.3e12 <= gpu.memory_bytes_per_s <= 8e12
    assert 70 <= gpu.power_w <= 1400
    # GeForce cards, whose tensor cores fp32 accumulation halves, run above the clock that they are rated at.
    highest = 1.25 if name.startswith("rtx-") and name[4:].isdigit() else 1
    assert gpu.matmul_flop_per_s == 0 or 0.4 < gpu.matmul_flop_per_s / gpu.tensor_flop_per_s < highest
    assert catalogue_gpu(name).source
    assert catalogue_gpu(name).node.source


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *(("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("A100 40GB SXM4", "a100-40gb"), ("H100 80G SXM", "h100-80gb")),
        *(("NVIDIA H100 80GB HBM3", "h100-80gb"), ("Tesla V100-SXM2-32GB", "v100-32gb"), ("DGX B200", "b200")),
        *(("NVIDIA GeForce RTX 4090", "rtx-4090"), ("MI250X (GCD)", "mi250x"), ("GB300 NVL72", "gb300")),
        *(
            ("AMD Instinct MI355X", "mi355x"),
            ("RTX PRO 6000 Blackwell", "rtx-pro-6000"),
            ("V100 PCIe", "v100-32gb-pcie"),
        ),
    ],
)
def test_gpus_by_the_names_people_write(written: str, name: str) -> None:
    assert catalogue_gpu(written).name == name


def test_no_alias_names_two_gpus() -> None:
    names = [(alias, name) for name in gpu_names() for alias in (name, *catalogue_gpu(name).aliases)]
    assert all(catalogue_gpu(alias).name == name for alias, name in names)


@pytest.mark.parametrize("name", RUN_TABLE_GPUS)
def test_a_cluster_can_be_made_from_the_gpu_names_of_run_tables(name: str) -> None:
    cluster = generic_cluster(name, 8)
    assert cluster.gpus_per_node == 8
    assert cluster.nvswitch
    assert {a.partition(":")[0] for a in cluster.assumptions} >= {
        "node.nvlink",
        "node.nvswitch",
        "network.nics_per_node",
        "network.nic",
        "network.fabric",
    }


def test_a_generic_cluster_takes_what_is_known() -> None:
    given = generic_cluster("h100", 8, node_bytes_per_s=200e9)
    assert given.node_bytes_per_s == pytest.approx(200e9)
    assert not any(a.startswith("network.nic:") for a in given.assumptions)
    assert generic_cluster("h100").node_bytes_per_s == pytest.approx(400e9)
    assert generic_cluster("h100", 4).node_bytes_per_s == pytest.approx(200e9)
    assert generic_cluster("gb200").gpus_per_node == 72
    with pytest.raises(InputError, match="gpus_per_node is 0"):
        generic_cluster("h100", 0)
    with pytest.raises(InputError, match="node_bytes_per_s is nan"):
        generic_cluster("h100", 8, float("nan"))
    with pytest.raises(InputError, match="unknown GPU 'h101'"):
        generic_cluster("h101")


@pytest.mark.parametrize("name", gpu_names())
def test_a_generic_cluster_of_every_gpu(name: str) -> None:
    cluster = generic_cluster(name)
    assert cluster.node_bytes_per_s > 0
    assert cluster.gpu == load_gpu(name)


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_figure_has_a_source_and_every_assumption_a_reason(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.sources["cluster"]
    assert not any("no reason is given" in assumption for assumption in cluster.assumptions)
    assert cluster.gpus_per_node in (4, 8, 72)
    assert 20e9 <= cluster.node_bytes_per_s <= 8e12
    if cluster.costs.gpu_hour_price is not None:
        # Currency, place and day: a price without them says nothing.
        assert re.match(r"USD, on demand in [\w-]+ on \d+ \w+ 20\d\d: ", cluster.sources["operation.gpu_hour_price"])


@pytest.mark.parametrize(
    ("name", "gbit_per_s", "price"),
    [
        # Gbit/s of a node: AWS's and Azure's pages; Google's 1,000 and 1,800 less the 200 that are not for GPUs.
        ("aws-p4d", 400, 21.957642),
        ("aws-p4de", 400, 27.44705),
        ("aws-p5", 3200, 55.04),
        ("aws-p5en", 3200, 63.296),
        ("azure-ndv4", 1600, 27.197),
        ("azure-ndmv4", 1600, 32.77),
        ("azure-ndv5", 3200, 98.32),
        ("gcp-a3-high", 800, None),
        ("gcp-a3-mega", 1600, None),
        ("gcp-a3-ultra", 3200, None),
        ("gcp-a4", 3200, None),
        ("dgx-h200", 3200, None),
        ("dgx-b200", 3200, None),
        ("gb200-nvl72", 28_800, None),
        ("dgx-b300", 6400, None),
        ("gb300-nvl72", 57_600, None),
        ("abci-3.0", 1600, None),
    ],
)
def test_published_figures_of_clouds(name: str, gbit_per_s: float, price: float | None) -> None:
    cluster = load_cluster(name)
    assert cluster.node_bytes_per_s * 8e-9 == pytest.approx(gbit_per_s)
    if price is None:
        assert cluster.costs.gpu_hour_price is None
    else:
        assert cluster.costs.gpu_hour_price == pytest.approx(price / 8, abs=5e-5)


def test_clusters_as_published() -> None:
    abci, mdx, dgx = load_cluster("ABCI-A"), load_cluster("mdx"), load_cluster("dgx-h100")
    assert (abci.num_nodes, abci.gpu.name, abci.node_bytes_per_s) == (120, "a100-40gb", 100e9)
    assert [a.partition(":")[0] for a in abci.assumptions] == ["node.nvswitch"]
    assert (mdx.num_nodes, mdx.gpus_per_node) == (40, 8)
    assert "network.nics_per_node: 4 is assumed" in " ".join(mdx.assumptions)
    assert "network.nic: 200 Gbit/s per NIC is assumed" in " ".join(mdx.assumptions)
    assert (dgx.node_bytes_per_s, dgx.assumptions) == (400e9, ())
    assert dgx.costs.node_power_w == pytest.approx(10_200)
    assert load_cluster("aws-p4d").node_bytes_per_s == 50e9
    abci.check_num_gpus(480)
    with pytest.raises(InputError, match="use at most 8 or a multiple of 8"):
        abci.check_num_gpus(481)


def test_every_data_file_is_the_form_that_a_user_writes() -> None:
    for folder in ("clusters", "models"):
        for entry in (files("flopcast.simulator.catalogue") / folder).iterdir():
            data = parse_toml(entry.read_text(), entry.name)
            assert data["name"], entry.name
            assert data["source"], entry.name


def test_an_entry_loads_without_torch_and_matplotlib() -> None:
    program = (
        "import sys\n"
        "from flopcast.simulator.catalogue import load_model, load_cluster\n"
        "load_model('plamo-13b'), load_cluster('abci-a')\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_cluster_is_shown_in_a_line() -> None:
    shown = repr(load_cluster("abci-a"))
    assert shown == "<Cluster ABCI-A: nodes of 8 x a100-40gb, 4 x 200 Gbit/s infiniband>"
