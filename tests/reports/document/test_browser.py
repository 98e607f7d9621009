"""The page in headless Chromium: silent console, sorting, and what the first screen holds, wide, narrow and dark."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from flopcast.reports.document.write import Report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr"),
)
# The page as it is but for its policy, which would refuse the probe.
PROBE = """<script>
document.documentElement.dataset.found = JSON.stringify((() => { %s })());
</script></body>"""


def opened(page: Path, *flags: str, size: str = "1280,800") -> tuple[str, list[str]]:
    """The document after its scripts ran, and the console's lines."""
    profile = page.with_suffix(".profile")
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", f"--window-size={size}", *flags, "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probed(page: Path, text: str, script: str, *flags: str, size: str = "1280,800") -> Any:
    """What a script finds in the page."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page.write_text(text.replace("</body>", PROBE % script), encoding="utf-8")
    document, console = opened(page, *flags, size=size)
    assert console == []
    found = re.search(r'data-found="([^"]*)"', document)
    assert found, document[:500]
    return json.loads(unescape(found[1]))


def test_the_console_is_read(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><script>console.error('heard')</script>", encoding="utf-8")
    assert any("heard" in line for line in opened(page)[1])


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_the_page_opens_from_disk_without_a_word(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    page = tmp_path / "page.html"
    page.write_text(request.getfixturevalue(name).as_html(), encoding="utf-8")
    document, console = opened(page)
    assert console == []  # a refused request or script would be here
    assert "<button" in document  # our script ran


def test_a_heading_sorts_its_column_by_number_both_ways(report: Report, tmp_path: Path) -> None:
    found = probed(
        tmp_path / "page.html",
        report.as_html(),
        """const table = document.getElementById("strategies-table");
        const button = table.querySelectorAll("thead button")[6];
        const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[6].dataset.order));
        button.click(); const up = [column(), button.parentElement.ariaSort];
        button.click(); return [...up, column(), button.parentElement.ariaSort];""",
    )
    memory = sorted(row.memory_bytes / 1e9 for row in report.study.ranked)
    assert found == [memory, "ascending", memory[::-1], "descending"]


FITS = """const box = (name) => document.querySelector(name).getBoundingClientRect();
return {width: innerWidth, height: innerHeight, page: document.documentElement.scrollWidth,
  answers: [...document.querySelectorAll(".answers > div")].map((one) => one.getBoundingClientRect().bottom),
  figures: [...document.querySelectorAll("svg")].map((one) => one.getBoundingClientRect().right),
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector("svg text")).fill};"""


@pytest.mark.parametrize("size", ["1280,800", "500,900"])
def test_the_first_screen_holds_the_answers_and_nothing_is_wider_than_it(
    size: str, report: Report, tmp_path: Path
) -> None:
    found = probed(tmp_path / "page.html", report.as_html(), FITS, size=size)
    assert found["page"] <= found["width"]
    assert len(found["answers"]) == 4
    assert max(found["answers"]) <= found["height"]
    assert max(found["figures"]) <= found["width"]


def test_dark_readers_get_light_ink_on_dark_paper(report: Report, tmp_path: Path) -> None:
    light = probed(tmp_path / "light.html", report.as_html(), FITS)
    dark = probed(tmp_path / "dark.html", report.as_html(), FITS, "--blink-settings=preferredColorScheme=0")
    assert (light["paper"], light["ink"]) == ("rgb(255, 255, 255)", "rgb(28, 33, 39)")
    assert (dark["paper"], dark["ink"]) == ("rgb(20, 24, 29)", "rgb(228, 232, 236)")
