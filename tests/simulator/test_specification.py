"""Cluster and model files: what they say, and one line for everything that can be wrong with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcast.collectives.group import FABRICS
from flopcast.errors import InputError
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.latent_attention import LatentAttention
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.state_space import StateSpace
from flopcast.simulator.blocks.transformer import Mlp
from flopcast.simulator.catalogue import cluster_names, load_cluster
from flopcast.simulator.specification import parse_cluster, parse_model, read_cluster, read_model

CLUSTER = """
name = "my-cluster"
[node]
gpu = "a100-40gb"
num_gpus = 8
nvlink = "300 GB/s"
nvswitch = true
[network]
nics_per_node = 4
nic = "200 Gbit/s"
fabric = "infiniband"
[operation]
gpu_hour_price = 1.5
node_power = "6.5 kW"
node_mtbf_hours = 20000
checkpoint_bandwidth = "10 GB/s"
"""

GPU = """
[gpu]
name = "X1"
architecture = "hopper"
tensor = "500 TFLOP/s"
memory = "64 GB"
memory_bandwidth = "2 TB/s"
power = {value = "600 W", assumed = true, source = "a rumour"}
"""

MODEL = """
name = "small"
hidden = 64
vocab_size = 100
context = 128
num_layers = 5
[[layers]]
num_heads = 4
num_kv_heads = 2
head_dim = 16
intermediate = 128
gated = true
window = 32
[[layers]]
num_heads = 4
num_kv_heads = 2
head_dim = 16
intermediate = 128
gated = true
"""


def refusal(parse: Callable[[str, str], object], text: str) -> str:
    """The one line that a wrong file is refused with, after the file's name."""
    with pytest.raises(InputError) as refused:
        parse(text, "my.toml")
    file, message = str(refused.value).split(": ", 1)
    assert file == "my.toml"
    assert "\n" not in message
    return message


def test_a_cluster_file_in_si_units() -> None:
    cluster = parse_cluster(CLUSTER, "my.toml")
    assert cluster.name == "my-cluster"
    assert cluster.gpu.tensor_flop_per_s == 312e12
    assert cluster.nvlink_bytes_per_s == 300e9
    assert cluster.node_bytes_per_s == pytest.approx(100e9)
    assert (cluster.gpus_per_node, cluster.nvswitch, cluster.fabric) == (8, True, "infiniband")
    assert cluster.num_nodes is None
    costs = cluster.costs
    assert (costs.gpu_hour_price, costs.node_power_w, costs.node_mtbf_hours) == (1.5, 6500.0, 20000)
    assert costs.checkpoint_bytes_per_s == 10e9
    assert cluster.assumptions == ()


def test_every_figure_may_carry_a_source_or_be_assumed() -> None:
    text = CLUSTER.replace('nvlink = "300 GB/s"', 'nvlink = {value = "300 GB/s", source = "datasheet"}').replace(
        'nic = "200 Gbit/s"', 'nic = {value = "200 Gbit/s", assumed = true, source = "as ABCI-A"}'
    )
    text = text.replace("num_gpus = 8", "num_gpus = {value = 8, assumed = true}")
    cluster = parse_cluster(text, "my.toml")
    assert cluster.sources["node.nvlink"] == "datasheet"
    assert cluster.assumptions == (
        "node.num_gpus: 8 is assumed (no reason is given)",
        "network.nic: 200 Gbit/s per NIC is assumed (as ABCI-A)",
    )


@pytest.mark.parametrize("table", [GPU, GPU.replace("[gpu]", "[node.gpu]")])
def test_a_gpu_of_ones_own(table: str) -> None:
    cluster = parse_cluster(CLUSTER.replace('gpu = "a100-40gb"\n', "") + table, "my.toml")
    assert cluster.gpu.name == "X1"
    assert cluster.gpu.memory_bytes == 64e9
    assert cluster.assumptions == ("gpu.power: 600 W is assumed (a rumour)",)
    silent = parse_cluster(
        CLUSTER.replace('gpu = "a100-40gb"\n', "").replace("nvswitch = true\n", "") + table, "my.toml"
    )
    assert "node.nvswitch: false is assumed (not given)" in silent.assumptions


def test_a_gpu_of_the_catalogue_with_a_power_limit_of_its_own() -> None:
    usual = parse_cluster('node = {gpu = "rtx-4090", num_gpus = 8}', "usual.toml")
    limited = parse_cluster('node = {num_gpus = 8}\ngpu = {name = "RTX 4090", power = "300 W"}', "limited.toml")
    assert limited.gpu.power_w == 300
    assert limited.gpu.memory_bytes_per_s == usual.gpu.memory_bytes_per_s == 1008e9
    assert limited.gpu.fp8_flop_per_s == usual.gpu.fp8_flop_per_s == 330.3e12
    # what its products were measured to sustain was measured at the usual limit
    assert usual.gpu.matmul_flop_per_s == 178.8e12
    assert limited.gpu.matmul_flop_per_s == 0
    # PCIe 4.0, as the catalogue's typical node has it
    assert limited.nvlink_bytes_per_s == 32e9
    assert not limited.nvswitch


def test_a_gpu_may_be_named_above_all_tables() -> None:
    text = "node = {num_gpus = 8}"
    assert (
        parse_cluster(f'gpu = "h800-80gb"\n{text}', "x.toml").gpu
        == parse_cluster(f'gpu = {{name = "h800-80gb"}}\n{text}', "x.toml").gpu
        == parse_cluster('node = {gpu = "h800-80gb", num_gpus = 8}', "x.toml").gpu
    )
    with pytest.raises(InputError, match=r"node\.gpu: unknown GPU 'h8000'; did you mean 'h800-80gb'"):
        parse_cluster(f'gpu = "h8000"\n{text}', "x.toml")


def test_an_unpublished_gpu_may_be_assumed_by_name() -> None:
    text = CLUSTER.replace('"a100-40gb"', '{value = "a100-80gb", assumed = true, source = "size not said"}')
    cluster = parse_cluster(text, "my.toml")
    assert cluster.gpu.name == "a100-80gb"
    assert cluster.assumptions == ("node.gpu: a100-80gb is assumed (size not said)",)


def test_a_single_node_needs_no_network() -> None:
    cluster = parse_cluster('[node]\ngpu = "h100"\nnum_gpus = 8\n', "my.toml", "my")
    assert (cluster.name, cluster.nics_per_node, cluster.num_nodes) == ("my", 0, 1)
    assert cluster.fabric in FABRICS
    # what the file leaves out is the GPU's usual node, and said so
    assert cluster.nvlink_bytes_per_s == 450e9
    assert cluster.assumptions[0] == ("node.nvlink: 450 GB/s per GPU is assumed (not given: as usual for h100-80gb)")
    cluster.check_num_gpus(8)
    with pytest.raises(InputError, match="is one node of 8; use at most 8"):
        cluster.check_num_gpus(16)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("num_gpus = 8", 'num_gpus = "eight"', "node.num_gpus is 'eight'; write a whole number"),
        ("num_gpus = 8", "num_gpus = 0", "node.num_gpus is 0; it must be greater than 0"),
        ("num_gpus = 8", "num_gpus = true", "node.num_gpus is True; write a whole number"),
        ("num_gpus = 8", "num_gpus = 8.5", "node.num_gpus is 8.5; write a whole number"),
        ("nics_per_node = 4", "nics_per_node = 0", "0 NICs join no nodes; leave out [network]"),
        ("nics_per_node = 4", "nics_per_node = {value = 0}", "0 NICs join no nodes; leave out [network]"),
        ("num_gpus = 8", "num_gpus = 10000000000", "it must be at most 1000000000"),
        ("num_gpus = 8\n", "", "node.num_gpus is missing; add it, such as num_gpus = 8"),
        (
            "num_gpus = 8",
            "num_gpus = {valu = 8}",
            "unknown key 'valu' in node.num_gpus; did you mean 'value'?",
        ),
        ("nvlink", "nvlnk", "unknown key 'nvlnk' in node; did you mean 'nvlink'"),
        ('"300 GB/s"', "300", 'node.nvlink: 300 has no unit; write it as text with one, such as "300 GB/s"'),
        ('"300 GB/s"', '"-5 GB/s"', "node.nvlink: '-5 GB/s' must be positive and finite"),
        ('"200 Gbit/s"', "200", 'network.nic: 200 has no unit; write it as text with one, such as "200 Gbit/s"'),
        ('"200 Gbit/s"', '"fast"', "network.nic: 'fast': unit 'fast' is not a unit of bandwidth"),
        ('"200 Gbit/s"', '"nan Gbit/s"', "network.nic: 'nan Gbit/s' must be positive and finite"),
        ('"200 Gbit/s"', '"200 W"', "network.nic: '200 W': unit 'W' is not a unit of bandwidth"),
        (
            '"infiniband"',
            '"infinband"',
            "network.fabric: 'infinband' is not one of 'infiniband', 'roce', 'efa'",
        ),
        (
            '"a100-40gb"',
            '{name = "x", architecture = "hoper"}',
            "gpu.architecture: 'hoper' is not one of 'volta'",
        ),
        ("nvswitch = true", 'nvswitch = "yes"', "node.nvswitch is 'yes'; write true or false"),
        ("= 1.5", "= nan", "operation.gpu_hour_price is nan; write a finite number"),
        ("= 1.5", "= -1.5", "operation.gpu_hour_price is -1.5; it must be greater than 0"),
        ("= 1.5", '= "1.5"', "operation.gpu_hour_price is '1.5'; write a number"),
        ('"a100-40gb"', '"a100-41gb"', "node.gpu: unknown GPU 'a100-41gb'; did you mean 'a100-40gb'"),
        (
            'gpu = "a100-40gb"\n',
            "",
            'node.gpu is missing; add it, such as gpu = "a100-40gb", or a [gpu] table',
        ),
        ("[node]", "[nodes]", "unknown key 'nodes'; did you mean 'node'"),
        ('"my-cluster"', '"two\\nlines"', "name is 'two\\nlines'; write one line of text"),
        ("num_gpus = 8", "num_gpus = 8\nnum_gpus = 8", "(at line 6"),
        ("num_gpus = 8", "num_gpus = ", "is not TOML: Invalid value (at line 5"),
        ("num_gpus = 8", "num_gpus = " + "9" * 5000, "is not TOML that can be read"),
        ("num_gpus = 8", "num_gpus = " + "[" * 5000, "nest too deeply"),
    ],
)
def test_a_wrong_cluster_is_refused_with_field_value_and_mend(old: str, new: str, says: str) -> None:
    assert old in CLUSTER
    assert says in refusal(parse_cluster, CLUSTER.replace(old, new, 1))


def test_every_error_is_listed_in_the_one_line() -> None:
    text = CLUSTER.replace("num_gpus = 8", "num_gpus = -1").replace('"200 Gbit/s"', "200")
    message = refusal(parse_cluster, text)
    assert "node.num_gpus is -1" in message
    assert "; network.nic: 200 has no unit" in message
    message = refusal(parse_cluster, text.replace("nics_per_node = 4", "nics_per_node = 0"))
    assert "node.num_gpus is -1" in message
    assert "; network.nics_per_node: 0 NICs join no nodes" in message


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match=r"node.gpu and \[gpu\] both name a GPU; keep one"):
        parse_cluster(CLUSTER + GPU, "my.toml")
    with pytest.raises(InputError, match=r"num_nodes is 4 without a \[network\]"):
        parse_cluster('num_nodes = 4\n[node]\ngpu = "h100"\nnum_gpus = 8\n', "my.toml")
    with pytest.raises(InputError, match="nvlink is missing; add it"):
        parse_cluster("[node]\nnum_gpus = 8\n" + GPU, "my.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; name a cluster file"):
        read_cluster(tmp_path / "none.toml")
    with pytest.raises(InputError, match="is a directory; name a cluster file"):
        read_cluster(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\x7fELF\x00\x01")
    with pytest.raises(InputError, match="is a binary file"):
        read_cluster(binary)
    huge = tmp_path / "huge.toml"
    with huge.open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(InputError, match="has 100 MB, more than the 10 MB allowed"):
        read_cluster(huge)
    locked = tmp_path / "good.toml"
    locked.write_text(CLUSTER)
    assert read_cluster(locked).name == "my-cluster"
    assert read_cluster(str(locked)).name == "my-cluster"


def test_every_kind_of_layer() -> None:
    latent = "kind = 'latent-attention'\nnum_heads = 4\nkv_rank = 32\nnope_dim = 8\nrope_dim = 4\nvalue_dim = 8\n"
    states = "kind = 'state-space'\nnum_heads = 4\nhead_dim = 16\nstate_dim = 8\nrank = 4\n"
    mlp = "intermediate = 128\ngated = true\n"
    experts = "num_experts = 8\nexperts_per_token = 2\nexpert_intermediate = 32\nshared_intermediate = 64\n"
    layers = "".join(f"[[layers]]\n{mixer}{part}" for mixer in (latent, states) for part in (mlp, experts))
    model = parse_model(MODEL[: MODEL.index("[[layers]]")].replace("= 5", "= 4") + layers, "m.toml")
    assert model.layers == (
        MixedBlock(LatentAttention(4, 32, 8, 4, 8), Mlp(128)),
        MixedBlock(LatentAttention(4, 32, 8, 4, 8), Experts(8, 2, 32, 64)),
        MixedBlock(StateSpace(4, 16, 8, 4), Mlp(128)),
        MixedBlock(StateSpace(4, 16, 8, 4), Experts(8, 2, 32, 64)),
    )
    assert [block.kind for block in model.layers] == [
        *("latent-transformer", "latent-expert-transformer"),
        *("state-space-transformer", "state-space-expert-transformer"),
    ]


def test_layers_repeat_in_their_order_until_there_are_enough() -> None:
    model = parse_model(MODEL, "small.toml")
    assert [block.kind for block in model.layers] == [
        "window-transformer",
        "transformer",
        "window-transformer",
        "transformer",
        "window-transformer",
    ]
    repeated = parse_model(MODEL.replace("num_heads = 4", "repeat = 2\nnum_heads = 4", 1), "small.toml")
    assert [block.kind == "transformer" for block in repeated.layers] == [False, False, True, False, False]
    layer = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert model.num_parameters == 5 * layer + 2 * 100 * 64 + 64


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("num_kv_heads = 2", "num_kv_heads = 3", "4 query heads cannot share 3 key/value heads evenly"),
        ("gated = true\n", "", "layers.0.gated is missing; add it, such as gated = true"),
        ("hidden = 64", "hidden = -64", "hidden is -64; it must be greater than 0"),
        ("hidden = 64", "hiden = 64", "unknown key 'hiden'; did you mean 'hidden'"),
        ("window = 32", "windw = 32", "unknown key 'windw' in layers.0; did you mean 'window'"),
        ("window = 32", 'kind = "mamba"', "layers.0.kind is 'mamba'; write 'transformer'"),
        ("num_layers = 5", "num_layers = 100000", "num_layers is 100000; it must be at most 10000"),
        ("num_layers = 5", 'num_layers = 5\npositions = "learned"', "learned positions need num_positions"),
        (
            "num_layers = 5",
            "num_layers = 5\nnum_positions = 9",
            'num_positions is 9 where positions is "rotary"',
        ),
        ("window = 32", 'kind = "latent-attention"', "layers.0.kv_rank is missing; add it, such as kv_rank = 512"),
        ("window = 32", 'kind = "latent-attention"', 'layers.0.num_kv_heads: a layer of kind = "latent-attention"'),
        ("window = 32", "kv_rank = 512", 'layers.0.kv_rank: a layer of kind = "transformer" without num_experts has'),
        ("window = 32", "num_experts = 8", "layers.0.experts_per_token is missing; add it, such as experts_per_token"),
        ("window = 32", "num_experts = 8", 'layers.0.gated: a layer of kind = "transformer" with num_experts has'),
        (MODEL[MODEL.index("[[layers]]") :], "layers = []", "layers is empty; add a [[layers]] table"),
        (MODEL[MODEL.index("[[layers]]") :], "layers = 3", "layers is 3; write a list in brackets"),
    ],
)
def test_a_wrong_model_is_refused_with_field_value_and_mend(old: str, new: str, says: str) -> None:
    assert old in MODEL
    assert says in refusal(parse_model, MODEL.replace(old, new, 1))


def test_a_model_file_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MODEL.replace('name = "small"\n', ""))
    assert read_model(path).name == "mine"
    with pytest.raises(InputError, match="is a directory; name a model file"):
        read_model(tmp_path)


LINES = st.lists(st.sampled_from((CLUSTER + GPU + MODEL).splitlines()), max_size=30).map("\n".join)
TOML_VALUE = st.sampled_from(
    [
        "0",
        "-1",
        "nan",
        "inf",
        "1e400",
        '"x"',
        "[]",
        "{}",
        "true",
        "1979-05-27",
        '{value = "1 GB/s"}',
        "9" * 30,
    ]
)


def _one_changed(text: str) -> st.SearchStrategy[str]:
    """The text with the value of one of its lines replaced."""
    lines = text.splitlines()
    numbered = [i for i, line in enumerate(lines) if " = " in line]

    def change(choice: tuple[int, Any]) -> str:
        index, value = choice
        key = lines[index].partition(" = ")[0]
        return "\n".join([*lines[:index], f"{key} = {value}", *lines[index + 1 :]])

    return st.tuples(st.sampled_from(numbered), TOML_VALUE).map(change)


@given(st.text(max_size=100) | LINES | _one_changed(CLUSTER) | _one_changed(MODEL))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    for parse in (parse_cluster, parse_model):
        try:
            parse(text, "any.toml")
        except InputError as refused:
            message = str(refused)
        else:
            message = ""
        assert "\n" not in message


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_cluster(path)
    assert "\n" not in str(refused.value)


def test_the_documentations_model_file_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    model = parse_model(page.split("```toml\n")[1].split("```")[0], "docs/models.md")
    assert [block.kind for block in model.layers] == ["transformer", *["expert-transformer"] * 7]


def test_figures_that_are_twice_a_datasheets_are_said() -> None:
    """NVIDIA's datasheets: H100 SXM 989 TFLOP/s dense and 1,979 sparse, NVLink 900 GB/s both ways; A100 312 and 600."""
    table = """
[gpu]
name = "NAME"
architecture = "ARCHITECTURE"
tensor = "TENSOR TFLOP/s"
memory = "80 GiB"
memory_bandwidth = "3350 GB/s"
power = "700 W"
[node]
num_gpus = 8
nvlink = "NVLINK GB/s"
nvswitch = true
"""

    def said(name: str, architecture: str, tensor: str, nvlink: str) -> list[str]:
        text = table.replace("NAME", name).replace("ARCHITECTURE", architecture)
        cluster = parse_cluster(text.replace("TENSOR", tensor).replace("NVLINK", nvlink), "my.toml")
        return [words.partition(":")[0] for words in cluster.assumptions]

    assert said("mine", "hopper", "1979", "900") == ["node.nvlink", "gpu.tensor"]
    assert said("mine", "hopper", "989", "450") == []
    assert said("mine", "ampere", "624", "300") == ["gpu.tensor"]
    assert said("NVIDIA H100 80GB SXM", "hopper", "2000", "450") == ["gpu.tensor"]
    # Twice an RTX A6000's 154.8 is an A100's own 312; what has no generation is like nothing.
    assert said("mine", "ampere", "312", "300") == []
    assert said("mine", "other", "1979", "900") == []

    named = parse_cluster(CLUSTER.replace("300 GB/s", "600 GB/s"), "my.toml")
    assert "600 GB/s per GPU is taken as one way, though it is twice the 300 GB/s" in named.assumptions[0]
    assert not parse_cluster(CLUSTER, "my.toml").assumptions


def test_a_network_that_no_node_has_is_said() -> None:
    """200 GB/s are 1,600 Gbit/s, eight times the 200 Gbit/s that were meant; 100 GB/s are a ConnectX-8's 800 Gbit/s."""

    def said(old: str, new: str) -> tuple[str, ...]:
        assert old in CLUSTER
        return parse_cluster(CLUSTER.replace(old, new), "my.toml").assumptions

    (nic,) = said('"200 Gbit/s"', '"200 GB/s"')
    assert nic.startswith("network.nic: 1600 Gbit/s per NIC is taken as given")
    assert nic.endswith('did you mean "200 Gbit/s"?')
    assert said('"200 Gbit/s"', '"100 GB/s"') == ()
    (count,) = said("nics_per_node = 4", "nics_per_node = 64")
    assert count.startswith("network.nics_per_node: 64 NICs for 8 GPUs are taken as given")
    assert said("nics_per_node = 4", "nics_per_node = 32") == ()  # an AWS P5


def test_no_cluster_of_the_catalogue_has_such_figures() -> None:
    found = [words for name in cluster_names() for words in load_cluster(name).assumptions]
    assert not [words for words in found if "twice" in words or "taken as given" in words]
