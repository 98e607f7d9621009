"""The throttled link: made, used and removed by its own script; the committed measurement keeps its promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flopcast.collectives.running.throttled_link import LinkRefusedError, Setting, measure
from flopcast.errors import InputError

COMMITTED = Path(__file__).parents[3] / "reports" / "measurements" / "throttled-all-gather.json"


def test_committed_measurement() -> None:
    document = json.loads(COMMITTED.read_text())
    assert {run["setting"]["ranks"] for run in document["runs"]} >= {2, 4}
    for run in document["runs"]:
        assert run["num_wrong"] == 0
        assert run["payload_ratio"] <= 0.2600
        assert run["time_ratio"] == pytest.approx(run["median_s"]["nf4"] / run["median_s"]["bf16"])
        assert run["time_ratio"] <= 0.35


def test_both_gathers_over_a_link_made_and_removed_by_the_script(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    module = "flopcast.collectives.running.throttled_link"
    arguments = ["--elements", "65536", "--mbit-per-s", "50", "--iterations", "2", "--output", str(output)]
    ran = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=100)
    if ran.stderr.startswith("skipped: "):
        pytest.skip(ran.stderr)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (run,) = json.loads(output.read_text())["runs"]
    assert run["num_wrong"] == 0
    assert run["payload_bytes"] == {"bf16": 131072, "nf4": 33824}
    assert {len(times) for times in run["times_s"].values()} == {2}
    # At 50 Mbit/s the 128 KiB of a rank take 21 ms less what the bucket lets through at once.
    assert run["median_s"]["bf16"] > (131072 - 65536) / (50e6 / 8)
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not [name for name in listed.split() if name.startswith("flopcast-") and not _alive(name)]


def _alive(namespace: str) -> bool:
    """Whether the process that a namespace is named after still runs, beside this test."""
    return Path(f"/proc/{namespace.split('-')[1]}").exists()


def test_a_machine_without_the_programs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LinkRefusedError, match="ip and tc cannot be found; install iproute2"):
        measure(Setting())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="give 2 to 8"):
        Setting(ranks=1)
    with pytest.raises(InputError, match="Mbit/s"):
        Setting(mbit_per_s=0.0)
    with pytest.raises(InputError, match="at least 1 of each"):
        Setting(elements=0)
