"""Profiling and calibrating as a user meets them: exit codes, one line per error, what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
from profiles import cpu_profile, gpu_profile

from flopcast.cli import main
from flopcast.collectives import COLLECTIVES, Fabric, Group, architecture_code, fabric_code
from flopcast.reports.closed_loop import FILE
from flopcast.simulator.profile import parse_profile, read_profile, to_json, write_profile
from flopcast.trainer import installed


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    assert (stopped.value.code or 0) == code, captured.err
    return captured.out, captured.err


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    out, err = output_of(capsys, *arguments, code=2)
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_merging_names_the_odd_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for index, scale in enumerate((1.0, 1.0, 1.2, 1.0)):
        paths.append(str(tmp_path / f"{index}.json"))
        write_profile(Path(paths[-1]), cpu_profile(host=f"node{index}", scale=scale))
    merged = tmp_path / "merged.json"
    out, err = output_of(capsys, "profile", "--merge", *paths, "-o", str(merged))
    assert "8 devices on 4 hosts" in out
    assert "host node2 is 20% slower than the others in gemm" in err
    assert len(read_profile(merged).devices) == 8
    out, _ = output_of(capsys, "profile", "--merge", *paths, "-o", str(merged), "--json")
    assert parse_profile(out, "stdout") == read_profile(merged)


def test_the_benchmark_of_collectives_forecasts_by_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flopcast.collectives.running import benchmark

    write_profile(tmp_path / "profile.json", cpu_profile())
    given: list[Any] = []
    monkeypatch.setattr(benchmark, "run", lambda options, on, **more: given.append(on))
    with pytest.raises(SystemExit):
        main(["bench", "collectives", "all_gather", "--cluster", str(tmp_path / "profile.json")])
    assert given[0].forecast("all_gather", 2**18, Group(2, 2)).time_s == pytest.approx(1e-4 + 2**18 / 1e9)


def test_a_profile_taken_beside_other_work_says_so_where_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scattered by hand: three of eight products leave the median where it was, five of them do not."""

    def taken(kind: str, *spreads: float) -> tuple[str, str, str]:
        profile, left = cpu_profile(), list(spreads)
        samples = [
            s.model_copy(update={"spread": left.pop()}) if s.kind == kind and left else s for s in profile.samples
        ]
        path, output = tmp_path / "profile.json", tmp_path / "out.json"
        write_profile(path, profile.model_copy(update={"samples": samples}))
        out, err = output_of(capsys, "profile", "--merge", str(path), "-o", str(output))
        question = ["compare", "opt-125m", "--gpus", "2", "--strategies", "zero3", "--cluster", str(output)]
        return out, err, output_of(capsys, *question)[0]

    sentence = "launch samples scatter by 906 %: something else runs here; measure again on an idle machine"
    out, err, answer = taken("launch", 9.06)
    assert "at best 500 GFLOP/s" in out
    assert err.startswith(f"flopcast: {sentence}\n")
    assert sentence in answer.split("Measured on this machine")[1].splitlines()
    assert "scatter" not in "".join(taken("gemm", 3.0, 3.0, 3.0))
    assert "gemm samples scatter by 300 %: " in taken("gemm", 3.0, 3.0, 3.0, 3.0, 3.0)[1]


def test_bad_profiles_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncated, foreign, other, good = (tmp_path / f"{name}.json" for name in ("truncated", "foreign", "other", "good"))
    text = to_json(cpu_profile())
    truncated.write_text(text[: len(text) // 2])
    foreign.write_text('{"hidden_size": 4096}')
    write_profile(other, gpu_profile())
    write_profile(good, cpu_profile())
    compare = ["compare", "plamo-13b", "--gpus", "2", "--cluster"]
    assert "truncated.json: is not JSON" in error_line(capsys, *compare, str(truncated))
    assert "foreign.json: is not a profile" in error_line(capsys, *compare, str(foreign))
    assert "no such file" in error_line(capsys, *compare, str(tmp_path / "absent.json"))
    merge = ["profile", "-o", str(tmp_path / "out.json"), "--merge"]
    assert "merge profiles of one device" in error_line(capsys, *merge, str(good), str(other))
    assert "two of the profiles" in error_line(capsys, *merge, str(good), str(good))
    for flags in (["--quick"], ["--cluster", "dgx-h100"], ["--kinds", "gemm"]):
        assert f"profile --merge takes no {flags[0]}, for" in error_line(capsys, *merge, str(good), *flags)
    assert not (tmp_path / "out.json").exists()


def test_the_committed_loop_through_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stored profile and logs as files: calibrate on two runs, then compare with what that wrote."""
    document = json.loads(FILE.read_text())
    profile, calibrated = tmp_path / "profile.json", tmp_path / "calibrated.json"
    profile.write_text(json.dumps(document["profile"]))
    for name, text in document["models"].items():
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.toml").write_text(text)
        start, *steps = document["logs"][name]
        records = [{**start, "model": {"name": f"{name}.toml", "qk_norm": None}}, *steps]
        (tmp_path / name / "log.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    first, second, third = (str(tmp_path / name) for name in document["models"])
    out, err = output_of(capsys, "calibrate", first, third, "--cluster", str(profile), "-o", str(calibrated))
    assert "compute_scale = " in out
    assert "wrote" in err
    arguments = ["--cluster", str(calibrated), "--gpus", "2", "--strategies", "zero3", "--json"]
    model = str(tmp_path / f"{Path(second).name}.toml")
    shape = ["--tokens-per-gpu", "2048", "--micro-batch", "4", "--recompute", "none"]
    answer = json.loads(output_of(capsys, "compare", model, *arguments, *shape)[0])
    measured = next(row["measured_step_s"] for row in document["rows"] if row["run"] == Path(second).name)
    assert answer["rows"][0]["step_s"] == pytest.approx(measured, rel=0.2)
    assert answer["outside_calibration"] == []
    far = json.loads(output_of(capsys, "compare", "opt-125m", *arguments)[0])
    assert any("parameters: outside the 2 runs calibrated on" in note for note in far["outside_calibration"])
    row = far["rows"][0]
    assert row["high_s"] / row["low_s"] > answer["rows"][0]["high_s"] / answer["rows"][0]["low_s"]
    out, _ = output_of(capsys, "calibrate", first, second, third, "--cluster", str(profile), "--json")
    section = json.loads(out)
    assert section["band"] is not None
    assert all(abs(r["left_out_step_s"] / r["measured_step_s"] - 1) < 0.2 for r in section["runs"])
    named = ["--constants", "compute_scale", "straggler"]
    line = error_line(capsys, "calibrate", first, "--cluster", str(profile), *named)
    assert "1 run cannot set 2 constants" in line
    assert "--cluster PROFILE" in error_line(capsys, "calibrate", first)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**document["profile"], "device": "Another CPU"}))
    line = error_line(capsys, "calibrate", first, second, "--cluster", str(other))
    assert "and the profile of 'Another CPU'" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "kernels", "--device", "tpu"], "--device is 'tpu'; it is cpu, cuda or cuda:1"),
        (["bench", "kernels", "--samples", "0"], "--samples is 0; give at least 1"),
        (["bench", "kernels", "--budget-seconds", "nan"], "--budget-seconds is nan; give a positive number of seconds"),
        (["bench", "kernels", "-o", "/dev/full"], "--output /dev/full: is no folder; name one"),
        (["bench", "collectives", "--backend", "mpi"], "--backend is 'mpi'; choose nccl or gloo"),
        (["verify", "gpt2", "--gpus", "8", "--strategy", "zero3", "--seq-len", "0"], "--seq-len is 0"),
        (["profile", "-o", "missing/profile.json"], "there is no folder missing"),
    ],
)
def test_what_cannot_be_measured_is_said_before(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in error_line(capsys, *arguments)


@pytest.mark.parametrize("command", [["bench", "kernels"], ["bench", "collectives"], ["verify", "gpt2", "--gpus", "8"]])
def test_without_pytorch_the_mend_is_said(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    strategy = ["--strategy", "zero3"] if command[0] == "verify" else []
    assert "pip install '.[train]'" in error_line(capsys, *command, *strategy)


def test_rows_with_wrong_results_are_left_out_of_the_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heading = "# size count type redop root time algbw busbw #wrong\n"
    good = "".join(f"{2**k} {2**k // 4} float sum -1 {20 + 2**k / 1e4:.2f} 0.1 0.1 0\n" for k in range(10, 16))
    bad = "65536 16384 float sum -1 900.0 0.1 0.1 7\n"
    log = tmp_path / "run.log"
    log.write_text(heading + good + bad + "# Avg bus bandwidth : 1\n")
    arguments = ["calibrate", "--nccl-log", str(log), "--collective", "all_reduce"]
    out, err = output_of(capsys, *arguments)
    assert err == (
        f"flopcast: {log}: leaves out 1 of 7 rows, whose results were wrong (#wrong; the first at 65536 B)\n"
    )
    log.write_text(heading + good + "# Avg bus bandwidth : 1\n")
    assert output_of(capsys, *arguments) == (out, "")
    (fitted,) = json.loads(output_of(capsys, *arguments, "--json")[0])["collectives"]
    assert (fitted["collective"], fitted["ranges"][0]["rows"]) == ("all_reduce", 6)
    log.write_text(heading + bad + "# Avg bus bandwidth : 1\n")
    assert "nothing to fit to without 1 of 1 rows" in error_line(capsys, *arguments)


def test_a_log_is_held_to_the_forecast_of_its_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = "".join(f"#  Rank {rank} Group 0 Pid 1 on a device {rank} [0x00] H100\n" for rank in range(8))
    log = tmp_path / "run.log"
    log.write_text(
        f"{ranks}# size count type redop root time algbw busbw #wrong\n"
        "1048576 262144 float sum -1 34.30 30.57 53.50 0\n1073741824 268435456 float sum -1 4700 228.5 399.8 0\n"
        "# Avg bus bandwidth : 1\n"
    )
    arguments = ["calibrate", "--nccl-log", str(log), "--collective", "all_reduce", "--cluster", "dgx-h100"]
    out, _ = output_of(capsys, *arguments)
    (heading, *lines) = out.splitlines()[-3:]
    assert heading.endswith("forecast (us)  ratio  algorithm")
    (document,) = json.loads(output_of(capsys, *arguments, "--json")[0])["collectives"]
    for line, row in zip(lines, document["rows"], strict=True):
        assert row["ratio"] == pytest.approx(row["forecast_s"] / row["measured_s"])
        assert line.split()[-3:] == [f"{row['forecast_s'] * 1e6:.2f}", f"{row['ratio']:.2f}", row["algorithm"]]
    # DGX H100 by its datasheet: 450 GB/s of NVLink one way, and a switch that reduces.
    fabric = Fabric(architecture_code("hopper"), 450e9, True, 8, 50e9, fabric_code("infiniband"), 8)
    formula = float(COLLECTIVES["all_reduce"].cost(2.0**30, Group(8, 8), fabric).time_s)
    assert document["rows"][1]["forecast_s"] == pytest.approx(formula)
    assert "forecast_s" not in output_of(capsys, *arguments[:-2], "--json")[0]
