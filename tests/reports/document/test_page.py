"""The page without a browser: what it refers to, what it says to those who cannot see it, and what it escapes."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from flopcast.reports.document.table import numbers_in
from flopcast.reports.document.write import Report

VOID = {"meta", "br", "img", "input", "link", "hr"}
REFERENCES = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")


class Page(HTMLParser):
    """Every element with its attributes, and the text by the innermost element that has an id."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.mismatched: list[str] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.mismatched.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(report.as_html())


@pytest.fixture(scope="module")
def hostile_page(hostile: Report) -> Page:
    return Page(hostile.as_html())


@pytest.mark.parametrize("name", ["page", "hostile_page"])
def test_every_element_is_closed_and_no_identifier_occurs_twice(name: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(name)
    assert page.mismatched == []
    assert page.open == []
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    referred = [
        attributes[key][1:]
        for _, attributes in page.elements
        for key in REFERENCES
        if key in attributes
    ]  # fmt: skip
    values = [value for _, attributes in page.elements for value in attributes.values()]
    referred += [name for value in values for name in re.findall(r"url\(#(.+?)\)", value)]
    assert set(referred) <= set(identifiers)


@pytest.mark.parametrize("name", ["page", "hostile_page"])
def test_the_page_refers_to_nothing_outside_itself(name: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(name)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        for key in REFERENCES:
            assert attributes.get(key, "#").startswith("#"), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
        assert "url(" not in re.sub(r"url\(#[^)]+\)", "", attributes.get("style", ""))
    style = "".join(data for tag, data in page.text if tag == "style")
    assert "@import" not in style
    assert "url(" not in style


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_only_our_script_may_run(name: str, request: pytest.FixtureRequest) -> None:
    page = Page(request.getfixturevalue(name).as_html())
    (script,) = [data for tag, data in page.text if tag == "script"]
    assert len(page.all("script")) == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_every_figure_has_alternative_text_with_its_numbers(page: Page, report: Report) -> None:
    drawings = [attributes for _, attributes in page.elements if attributes.get("class") == "drawing"]
    pictures = [picture for section in report.sections for picture in section.pictures]
    assert len(drawings) == len(pictures) == len(page.all("svg")) == len(page.all("figure")) == 7
    for drawing, picture in zip(drawings, pictures, strict=True):
        assert drawing["role"] == "img"
        assert drawing["aria-label"].replace("\N{NO-BREAK SPACE}", " ") == picture.alternative
        assert len(numbers_in(picture.alternative)) >= 2


def test_every_number_of_the_recommendation_is_in_a_table(report: Report, hostile: Report) -> None:
    for made in (report, hostile):
        tables = set().union(*(table.numbers() for section in made.sections for table in section.tables))
        said = made.recommendation.sentence + " ".join(f" {a.answer} {a.note}" for a in made.recommendation.answers)
        numbers = numbers_in(said)
        assert len(numbers) > 10
        assert set(numbers) <= tables, set(numbers) - tables


def test_the_recommendation_says_what_to_run_what_it_costs_and_how_sure(report: Report) -> None:
    study, sentence = report.study, report.recommendation.sentence
    assert sentence.startswith(f"Run {study.best.strategy} with micro-batch {study.best.plan['micro_batch']}")
    assert f"{study.cost.days:#.3g} days ({study.low.days:#.3g} to {study.high.days:#.3g})" in sentence
    assert "GPU-hours (" in sentence
    assert "at 1.5 per GPU-hour" in sentence
    assert study.low.days < study.cost.days < study.high.days
    assert study.best.plan["gather_bits"] == 4
    assert "The 4-bit gather changes the arithmetic of training; without it zero3-node takes " in sentence


def test_the_reports_table_of_one_layer_is_exact(page: Page) -> None:
    cells = {data for tag, data in page.text if tag == "td"}
    assert {"335,544,320", "314,577,920", "1,342,177,280", "629,155,840", "1,280.00", "600.01"} <= cells


def test_the_page_is_small(report: Report) -> None:
    assert len(report.as_html().encode()) < 3e6


def test_hostile_names_are_read_as_text(hostile: Report, hostile_page: Page) -> None:
    tags = {tag for tag, _ in hostile_page.elements}
    assert not tags & {"img", "b"}
    everything = "".join(data for _, data in hostile_page.text)
    study = hostile.study
    for words in (study.model.name, study.cluster.name, study.cluster.gpu.name, *study.cluster.assumptions):
        assert words in everything
    title = "".join(data for tag, data in hostile_page.text if tag == "title")
    assert title == hostile.heading.title


def test_headings_tables_and_language_are_marked_up(page: Page, report: Report) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == len(report.sections)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(heading.get("scope") in ("col", "row") for heading in page.all("th"))
