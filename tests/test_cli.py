"""The command line as a user meets it: exit codes, one line per error, JSON that is JSON, a light --help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flopcast.cli import main

PLAMO = ["compare", "plamo-13b", "--cluster", "abci-a", "--gpus", "480"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flopcast", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("flopcast: ")
    return captured.err


def test_compare_prints_tables_and_exits_0() -> None:
    done = run(*PLAMO)
    assert done.returncode == 0
    assert done.stderr == ""
    for words in (
        "zero3-node",
        "335,544,320",
        "314,577,920",
        "1,280",
        "600",
        "what bounds it",
        "80 % band",
        "days",
    ):
        assert words in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120


def test_compare_json_has_the_documented_keys() -> None:
    document = json.loads(run(*PLAMO, "--json").stdout)
    assert {"model", "cluster", "convention", "layer_traffic", "rows"} <= set(document)
    assert document["layer_traffic"][0] == {
        "strategy": "tp8",
        "collective": "all_reduce",
        "elements": 335544320,
        "tensor_bytes": 671088640,
        "moved_bytes": 1342177280,
    }
    keys = {
        *(
            "strategy",
            "plan",
            "step_s",
            "low_s",
            "high_s",
            "tokens_per_s_per_gpu",
            "mfu",
            "hfu",
            "memory_bytes",
        ),
        *("fits", "inter_node_bytes", "intra_node_bytes", "exposed_communication_s"),
    }
    for row in document["rows"]:
        assert keys <= set(row)
        assert 0 < row["mfu"] < 1


def test_strategies_with_commas_or_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--strategies", "zero3,hsdp+q4"], ["--strategies", "zero3", "hsdp+q4"]):
        with pytest.raises(SystemExit) as stopped:
            main([*PLAMO, *given, "--json"])
        assert not stopped.value.code
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert [row["strategy"] for row in rows] == ["zero3", "hsdp+q4"]


def test_a_config_json_and_a_toml_file_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "vocab_size": 32000,
                "max_position_embeddings": 4096,
                "tie_word_embeddings": False,
            }
        )
    )
    machine = tmp_path / "mine.toml"
    machine.write_text(
        'name = "mine"\n[node]\ngpu = "h100-80gb"\nnum_gpus = 8\nnvlink = "450 GB/s"\nnvswitch = true\n'
        '[network]\nnics_per_node = 8\nnic = {value = "400 Gbit/s", assumed = true}\nfabric = "infiniband"\n'
    )
    arguments = ["compare", str(config), "--cluster", str(machine), "--gpus", "16", "--json"]
    with pytest.raises(SystemExit):
        main(arguments)
    document = json.loads(capsys.readouterr().out)
    assert document["model"]["num_parameters"] == 6_738_415_616
    assert any("network.nic" in sentence for sentence in document["cluster"]["assumptions"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "plamo-31b", "--cluster", "abci-a", "--gpus", "480"], "plamo-13b"),
        (["compare", "plamo-13b", "--cluster", "abci", "--gpus", "480"], "abci-a"),
        (["compare", "plamo-13b", "--cluster", "abci-a", "--gpus", "481"], "480 or 488"),
        (["compare", "plamo-13b", "--cluster", "abci-a", "--gpus", "many"], "--gpus"),
        (["compare", "plamo-13b", "--cluster", "abci-a", "--gpus", "nan"], "--gpus"),
        (["compare", "plamo-13b", "--cluster", "abci-a"], "--gpus"),
        (["compare", "plamo-13b", "--gpus", "480"], "--cluster"),
        ([*PLAMO, "--strategies", "zero5"], "did you mean"),
        ([*PLAMO, "--convention", "8n"], "8n"),
        ([*PLAMO, "--tokens", "nan"], "--tokens"),
        ([*PLAMO, "--tokens", "-1"], "--tokens"),
        ([*PLAMO, "--nonsense"], "--nonsense"),
        (["forecast"], "forecast"),
        ([*PLAMO, "--tokens", "lots"], "--tokens is 'lots'; write a number, e.g. 1.4e12, 1.4T or 300B"),
        ([*PLAMO, "--tokens", "1e300"], "--tokens is 1e+300; it must be positive and at most"),
        ([*PLAMO[:-1], "16k"], "--gpus is '16k'; write a whole number in digits alone"),
        (["compare", "plamo-13b", "--cluster", "dgx-h100", "--gpus", "8" + "0" * 20], "at most 10,000,000"),
        ([*PLAMO, "--seq-len", "4k"], "--seq-len is '4k'; write a whole number"),
        ([*PLAMO[:-1], "15.7"], "--gpus is '15.7'; write a whole number"),
        ([*PLAMO, "--seq-len", "4096.7"], "--seq-len is '4096.7'; write a whole number"),
        ([*PLAMO, "--micro-batch=1.5"], "--micro-batch is '1.5'; write a whole number"),
        (["search", *PLAMO[1:], "--top", "2.5"], "--top is '2.5'; write a whole number"),
        (["timeline", *PLAMO[1:], "--strategy", "zero3", "--pp", "1.5"], "--pp is '1.5'; write a whole number"),
        (["bench", "collectives", "-n", "1.5"], "-n is '1.5'; write a whole number"),
        (["bench", "kernels", "--tokens", "1024", "15.5"], "--tokens is '15.5'; write a whole number"),
        ([*PLAMO, "--strategies", "fsdp"], "it is called 'zero3' here"),
        ([*PLAMO, "--attention", "flash3"], "a100-40gb is ampere"),
        (["search", *PLAMO[1:], "--fix", "attention=flash4"], "a100-40gb is ampere"),
        (["search", *PLAMO[1:-1], "8,x"], "--gpus is '8,x'; write whole numbers"),
        (["search", *PLAMO[1:], "--figure", "front.bmp"], "a name ends in .svg, .png or .pdf"),
        (["accuracy", "--regret", "--check"], "--regret and --check do not go together"),
        (["accuracy", "--collectives", "published", "--regret"], "--collectives and --regret do not go together"),
        (["accuracy", "--runs", "mine.csv", "--collectives", "published"], "--collectives and --runs do not go"),
        (["accuracy", "--check", "--figure", "accuracy.svg"], "--check and --figure do not go together"),
        (["accuracy", "--figure", "missing/accuracy.svg"], "there is no folder missing"),
        (["timeline", *PLAMO[1:], "--strategy", "zero3", "--figure", "."], "is a folder"),
        (["timeline", *PLAMO[1:]], "say which plan, with --strategy"),
        (["timeline", *PLAMO[1:], "--strategy", "zero1", "--pp", "0"], "--pp is 0"),
        (["timeline", *PLAMO[1:], "--strategy", "zero1", "--virtual-pp", "0"], "--virtual-pp is 0"),
        (["timeline", *PLAMO[1:], "--fix", "tp=2", "--pp", "2"], "takes --pp as FIELD=VALUE, e.g. --fix pp=2"),
        (["calibrate", "run", "--cluster", "p.json", "-o", "missing/p.json"], "there is no folder missing"),
        (["calibrate", "--global", "--output", "p.json"], "takes no --output"),
        (["calibrate", "--global", "--cluster", "profile.json"], "takes no --cluster"),
        (["calibrate", "run", "--global"], "give RUNS and --cluster PROFILE, or say --global"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in error_line(capsys, *arguments)


def test_the_timeline_plays_what_a_search_finds(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["pythia-1b", "--cluster", "dgx-h100", "--gpus", "8", "--fix", "tp=2", "cp=2", "precision=fp8", "--json"]
    documents = []
    for command in ("search", "timeline"):
        with pytest.raises(SystemExit) as stopped:
            main([command, *question])
        assert not stopped.value.code
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[1]["closed_form_s"] == pytest.approx(documents[0]["rows"][0]["step_s"])


@pytest.mark.parametrize(("budget", "words"), [("1.4T", "1.40 T tokens"), ("300B", "300 G"), ("300e9", "300 G")])
def test_a_token_budget_as_it_is_said(budget: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*PLAMO, "--tokens", budget])
    assert not stopped.value.code
    assert f"Days are for {words}" in capsys.readouterr().out


def test_what_is_wrong_with_every_strategy_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(capsys, *PLAMO, "--micro-batch", "7")
    assert line.count("does not divide the 2 sequences") == 1
    assert "so for ddp, zero1, zero2" in line


def test_a_terminal_that_cannot_show_a_name_gets_the_rest(tmp_path: Path) -> None:
    machine = tmp_path / "machine.toml"
    machine.write_text('name = "計算機"\n[node]\ngpu = "a100-40gb"\nnum_gpus = 8\n', encoding="utf-8")
    command = [sys.executable, "-m", "flopcast", "compare", "pythia-1b", "--cluster", str(machine), "--gpus", "8"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u8a08" in done.stdout


@pytest.mark.parametrize("columns", ["0", "3"])
def test_help_ends_at_any_width(columns: str) -> None:
    command = [sys.executable, "-m", "flopcast", "compare", "--help"]
    environment = {**os.environ, "COLUMNS": columns}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--strategies" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes it")
def test_a_closed_standard_output_is_no_fault() -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "flopcast", *PLAMO, "--strategies", "zero3"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "flopcast", *PLAMO, *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "flopcast: standard output: No space left on device\n")


def test_bad_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(100 * 2**20)
    binary = tmp_path / "binary.json"
    binary.write_bytes(bytes(range(256)) * 100)
    folder = tmp_path / "folder"
    folder.mkdir()
    nan = tmp_path / "nan.toml"
    nan.write_text('name = "x"\n[node]\ngpu = "a100-40gb"\nnum_gpus = 8\nnvlink = "nan GB/s"\nnvswitch = true\n')
    for path in (big, binary, folder, tmp_path / "absent.json"):
        line = error_line(capsys, "compare", str(path), "--cluster", "abci-a", "--gpus", "8")
        assert path.name in line
    for path in (nan, big, binary, folder):
        line = error_line(capsys, "compare", "plamo-13b", "--cluster", str(path), "--gpus", "8")
        assert path.name in line


def test_an_option_without_its_values_is_not_taken_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--strategies has no value" in error_line(capsys, *PLAMO, "--strategies")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom flopcast.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pandas', 'scipy', 'torch', 'cupy', 'matplotlib', 'pydantic', 'simpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout


@pytest.mark.parametrize("module", ["cyclopts", "numpy", "rich.table"])
def test_ctrl_c_during_an_import_ends_without_a_traceback(module: str) -> None:
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from flopcast.cli import main\n"
        f"main({PLAMO!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "flopcast: interrupted\n")


def test_an_error_that_ctrl_c_caused_is_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:  # as extension modules do
            raise ImportError("initialisation failed") from error

    monkeypatch.setattr("flopcast.simulator.catalogue.load_model", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(PLAMO)
    assert (stopped.value.code, capsys.readouterr().err) == (130, "flopcast: interrupted\n")


def test_a_reader_who_leaves_early_is_no_failure() -> None:
    command = f"set -o pipefail; {sys.executable} -m flopcast {' '.join(PLAMO)} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("PLaMo-13B")


def test_compare_needs_neither_torch_nor_pandas() -> None:
    code = (
        "import sys\nfrom flopcast.cli import main\n"
        f"try:\n    main({PLAMO!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'pandas', 'scipy', 'torch', 'cupy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
