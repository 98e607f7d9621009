"""Profiles as files: what is read back, what is refused and with which words, how many nodes become one."""

import json
from pathlib import Path
from typing import Any

import pytest
from profiles import cpu_profile, gemm, gpu_profile

from flopcast.errors import InputError
from flopcast.simulator.odd_devices import odd_devices
from flopcast.simulator.profile import Profile, merge, parse_profile, read_profile, to_json, write_profile


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    profile = cpu_profile()
    write_profile(tmp_path / "sub" / "profile.json", profile)
    assert read_profile(tmp_path / "sub" / "profile.json") == profile
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["profile.json"]


def test_every_sample_has_its_kind_arguments_median_and_spread() -> None:
    document = json.loads(to_json(cpu_profile()))
    for sample in document["samples"]:
        assert {"kind", "arguments", "median_s", "spread"} <= set(sample)
        assert sample["median_s"] > 0


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    text = to_json(cpu_profile())
    for end in (0, 1, len(text) // 3, len(text) - 4):
        path.write_text(text[:end])
        with pytest.raises(InputError, match=r"profile\.json: is not JSON.*line \d+"):
            read_profile(path)


def test_a_foreign_document_is_refused() -> None:
    for text in ("[]", "{}", '{"format": "other"}', "3", '{"architectures": ["LlamaForCausalLM"]}'):
        with pytest.raises(InputError, match="is not a profile"):
            parse_profile(text, "file.json")


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(to_json(cpu_profile())), **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"samples": []}, "samples"),
        ({"device_type": "tpu"}, "device_type is 'tpu'"),
        ({"memory_bytes": -1.0}, "memory_bytes is -1.0; it must be greater than 0"),
        ({"more": 1}, "unknown key 'more'"),
        ({"devices": [{"host": "a"}]}, "devices.0.index is missing"),
    ],
)
def test_every_fault_has_its_path(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_profile(changed(**values), "file.json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_listed_at_once() -> None:
    document = json.loads(to_json(cpu_profile()))
    del document["device"]
    document["samples"][2]["median_s"] = 0
    document["samples"][3]["kind"] = "gem"
    with pytest.raises(InputError) as caught:
        parse_profile(json.dumps(document), "file.json")
    for words in ("device is missing", "samples.2.median_s", "samples.3.kind"):
        assert words in str(caught.value)


def test_a_sample_has_a_time_for_each_device() -> None:
    document = json.loads(to_json(cpu_profile()))
    document["samples"][0]["by_device"] = [1.0]
    with pytest.raises(InputError, match=r"samples\.0\.by_device has 1 entries for 2 devices"):
        parse_profile(json.dumps(document), "file.json")


def nodes(*scales: float, ranks: int = 2) -> Profile:
    profiles = [cpu_profile(host=f"node{i}", scale=scale, ranks=ranks) for i, scale in enumerate(scales)]
    return merge(profiles, [f"node{i}.json" for i in range(len(scales))])


def test_merged_samples_are_the_median_over_devices() -> None:
    merged = nodes(1.0, 1.1, 1.5)
    alone = cpu_profile()
    assert [device.label for device in merged.devices[:3]] == [
        "host node0, device 0",
        "host node0, device 1",
        "host node1, device 0",
    ]
    for sample, single in zip(merged.samples, alone.samples, strict=True):
        assert sample.median_s == pytest.approx(1.1 * single.median_s)
        assert sample.by_device == pytest.approx([f * single.median_s for f in (1, 1, 1.1, 1.1, 1.5, 1.5)])
    assert parse_profile(to_json(merged), "merged.json") == merged


def test_a_device_may_be_in_two_profiles_of_different_samples() -> None:
    compute = gpu_profile(gemm(64, 64, 64, 1e12))
    network = gpu_profile(gemm(128, 128, 128, 1e12))
    merged = merge([compute, network], ["a.json", "b.json"])
    assert len(merged.devices) == 1
    assert len(merged.samples) == 2


def test_what_does_not_merge_is_said() -> None:
    with pytest.raises(InputError, match=r"a\.json is of 'Some CPU' and b\.json of 'NVIDIA"):
        merge([cpu_profile(), gpu_profile()], ["a.json", "b.json"])
    with pytest.raises(InputError, match="measured 2 devices of a node at a time and b 1"):
        merge([cpu_profile(), cpu_profile(host="two", ranks=1)], ["a", "b"])
    with pytest.raises(InputError, match="host one, device 0 has 'gemm"):
        merge([cpu_profile(), cpu_profile()], ["a", "b"])


def test_the_slow_node_is_named_with_how_much() -> None:
    merged = nodes(1.0, 1.005, 0.998, 1.12, 1.002)
    odd = odd_devices(merged)
    assert {item.where for item in odd} == {"host node3"}
    assert {item.kind for item in odd} == {"gemm", "copy", "launch", "collective"}
    for item in odd:
        assert item.slower == pytest.approx(0.12, abs=0.006)
        assert item.score > 3.5
    assert odd[0].sentence().startswith("host node3 is 12% slower than the others in")


def test_one_slow_device_of_a_node_is_named() -> None:
    merged = nodes(1.0, 1.0, 1.0)
    slow = [
        sample.model_copy(
            update={"by_device": [*sample.by_device[:4], 1.3 * (sample.by_device[4] or 0), sample.by_device[5]]}
        )
        for sample in merged.samples
    ]
    odd = odd_devices(merged.model_copy(update={"samples": slow}))
    assert {item.where for item in odd} == {"host node2, device 0"}


def test_nodes_that_repeat_within_a_hundredth_are_not_odd() -> None:
    assert odd_devices(nodes(1.0, 1.01, 0.99, 1.02)) == []
    assert odd_devices(nodes(1.0, 1.5, ranks=1)) == []  # of two nobody can say which is odd
