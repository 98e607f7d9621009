"""The numbers of a report against the forecasts they come from, and the questions that are hard to answer."""

from dataclasses import replace

import pytest
from builders import cluster, small_model

from flopcast import Request, compare, load_cluster, load_model
from flopcast.reports.document.further import as_compared, choice, faster
from flopcast.reports.document.nearest_runs import nearest_runs
from flopcast.reports.document.numbers import rounded
from flopcast.reports.document.study import Study, study
from flopcast.reports.document.table import numbers_in
from flopcast.reports.document.write import Report
from flopcast.reports.placements import described
from flopcast.reports.runs import published_runs
from flopcast.simulator.cluster import Costs
from flopcast.simulator.forecast import forecast


def test_a_search_beside_a_comparison_runs_in_its_precision() -> None:
    assert as_compared(Request(8, precision="fp8"), load_cluster("dgx-h100"))["precision"] == ["fp8"]


def test_memory_and_waterfall_add_up(report: Report) -> None:
    found: Study = report.study
    for row in found.ranked:
        assert found.memory.loc[row.strategy].sum() == pytest.approx(row.memory_bytes)
    assert found.waterfall["seconds"].sum() == pytest.approx(found.timeline.step_s)
    assert found.timeline.step_s == pytest.approx(found.best.step_s, rel=0.03)


def test_effects_with_the_kernels_are_the_comparison(report: Report) -> None:
    found = report.study
    steps = {row.strategy: row.step_s for row in found.comparison.rows}
    fused = found.effects[found.effects["fused_kernels"]]
    for row in fused.itertuples():
        assert row.step_s == steps[f"{row.strategy}+q4" if row.gather_bits == 4 else row.strategy]
    eager = compare(found.model, found.cluster, Request(480, fused_kernels=False, strategies=["zero3-node"])).rows[0]
    without = found.effects[~found.effects["fused_kernels"] & (found.effects["gather_bits"] == 16)]
    assert without.set_index("strategy").loc["zero3-node", "step_s"] == eager.step_s


def test_a_published_run_is_nearest_to_itself() -> None:
    run = next(run for run in published_runs() if run.id == "torchtitan-0001")
    assert run.model is not None
    assert run.cluster is not None
    assert run.plan is not None
    row = forecast(run.model, run.cluster, run.plan).rows()[0]
    found = nearest_runs(run.model, run.cluster, row, number=5)
    assert len(found) == 5
    first = found.iloc[0]
    assert (first["model"], first["num_gpus"], first["gpu"]) == ("llama2-13b", 64, "a100-80gb")
    same = found[found["id"] == run.id].iloc[0]
    assert same["predicted_s"] == pytest.approx(row.step_s)
    assert same["ratio"] == pytest.approx(row.step_s / run.measured_step_s)
    assert found["source"].value_counts().max() <= 3


def said(report: Report) -> str:
    return report.recommendation.sentence + " ".join(f" {a.answer} {a.note}" for a in report.recommendation.answers)


def in_tables(report: Report) -> set[str]:
    return set().union(*(table.numbers() for section in report.sections for table in section.tables))


QUESTIONS = ["What to run", "How long", "What it costs", "How sure"]


@pytest.mark.parametrize(("name", "asked"), [("llama-2-70b", 8), ("megatron-1t", 8)])
def test_where_nothing_fits_the_report_says_what_would_on_more(name: str, asked: int) -> None:
    machine = replace(load_cluster("dgx-a100"), costs=Costs(gpu_hour_price=2.0))
    # So many tokens that no number of passes is the number of GPUs.
    found = Report(study(load_model(name), machine, Request(asked, tokens_per_gpu=2**16)))
    more = found.study.on_more
    assert not found.study.best.fits
    assert more is not None
    assert more.fits
    assert more.plan["num_gpus"] > asked
    assert found.recommendation.sentence.startswith(f"Nothing fits on {asked} GPUs (")
    assert f"Run {more.strategy} on {more.plan['num_gpus']:,} GPUs, " in found.recommendation.sentence
    assert "at 2 per GPU-hour" in found.recommendation.sentence
    assert [answer.question for answer in found.recommendation.answers] == QUESTIONS
    assert set(numbers_in(said(found))) <= in_tables(found)
    # What follows the recommendation is of the plan that it recommends.
    assert found.study.costed is more
    assert found.study.timeline.step_s == pytest.approx(more.step_s, rel=0.03)
    # As many GPUs or more hold some plan as well.
    counts = {count for count in found.study.scaling["num_gpus"] if count >= more.plan["num_gpus"]}
    assert more.plan["num_gpus"] in counts
    assert counts <= set(found.study.at_each_count["num_gpus"])
    assert ("changes the arithmetic" in found.recommendation.sentence) == (more.plan["gather_bits"] == 4)
    assert not {"traffic", "remedies"} & {section.name for section in found.sections}
    found.as_html()
    found.as_markdown()
    found.as_json()


def test_where_no_number_of_gpus_holds_it_the_report_says_so() -> None:
    alone = replace(cluster(), nics_per_node=0, nic_bytes_per_s=0.0, num_nodes=1)
    found = Report(study(load_model("megatron-1t"), alone, Request(8, tokens_per_gpu=2**16)))
    assert found.study.on_more is None
    assert found.recommendation.sentence.startswith("Nothing fits on 8 GPUs: ")
    assert "a smaller model would help" in found.recommendation.sentence
    found.as_html()


def test_a_search_of_all_plans_is_beside_the_strategies(report: Report) -> None:
    found = report.study
    assert found.further is not None
    row = found.further.winner[1]
    assert row.plan["gradient_bits"] == found.best.plan["gradient_bits"]
    assert row.step_s <= found.best.step_s * (1 + 1e-9)
    (table,) = [t for s in report.sections for t in s.tables if t.name == "further-table"]
    assert table.rows[0][1].order == row.step_s


def test_a_gather_in_four_bits_is_not_recommended_for_what_cannot_be_told_apart() -> None:
    found = Report(study(load_model("plamo-13b"), load_cluster("abci-a"), Request(64)))
    assert found.study.comparison.best.strategy == "zero3-node+q4"
    assert found.study.best.strategy == "zero3-node"
    assert found.study.ranked[0] == found.study.best
    assert found.study.strategies["strategy"].iloc[0] == "zero3-node"
    assert "zero3-node+q4" in found.study.equals
    assert "4-bit gather changes" not in found.recommendation.sentence
    assert "not told apart from zero3-node+q4" in found.recommendation.answers[0].note
    changed = found.study.sensitivity.dropna(subset=["days"])
    assert list(changed["ratio"]) == pytest.approx(list(changed["days"] / found.study.cost.days))
    here = found.study.at_each_count.set_index("num_gpus").loc[64]
    assert (here["strategy"], here["days"]) == ("zero3-node", found.study.cost.days)
    # The sentence above and that below hold the search against the same plan.
    assert ("Among all plans" in found.recommendation.sentence) == ("would bring" in found.as_markdown())
    assert set(numbers_in(said(found))) <= in_tables(found)


@pytest.fixture(scope="module")
def searched() -> Report:
    machine = replace(load_cluster("dgx-h100"), costs=replace(load_cluster("dgx-h100").costs, gpu_hour_price=2.0))
    return Report(study(load_model("llama-3-70b"), machine, Request(128, seq_len=131072)))


def test_where_no_strategy_fits_but_a_plan_does_the_report_recommends_it(searched: Report) -> None:
    found = searched.study
    assert found.further is not None
    row = choice(found.further)
    assert found.searched
    assert found.best.fits
    assert (found.best.plan, found.best.strategy) == (row.plan, described(row))
    assert f"Run {described(row)}, micro-batch " in searched.recommendation.sentence
    assert "at 2 per GPU-hour" in searched.recommendation.sentence
    assert [answer.question for answer in searched.recommendation.answers] == QUESTIONS
    assert "MWh" in searched.recommendation.answers[2].note
    assert set(numbers_in(said(searched))) <= in_tables(searched)
    assert "nothing" not in searched.as_markdown()[:2000].lower()


def test_a_plan_that_is_a_tenth_faster_than_every_strategy_is_recommended_although_they_fit() -> None:
    found = Report(study(load_model("mixtral-8x7b"), load_cluster("dgx-h100"), Request(64)))
    alone = found.study.comparison.best
    assert alone.fits
    assert found.study.searched
    assert found.study.best.step_s < 0.9 * alone.step_s
    assert found.recommendation.sentence.startswith(f"Run {found.study.best.strategy}, micro-batch ")
    assert f"Of the strategies alone {alone.strategy} is the fastest: " in found.recommendation.sentence
    assert set(numbers_in(said(found))) <= in_tables(found)


def test_a_plan_of_the_search_stands_in_every_table(searched: Report) -> None:
    found, name = searched.study, searched.study.best.strategy
    assert found.strategies["strategy"].iloc[0] == name
    assert found.memory.loc[name].sum() == pytest.approx(found.best.memory_bytes)
    assert found.waterfall["seconds"].sum() == pytest.approx(found.timeline.step_s)
    here = found.scaling[(found.scaling["num_gpus"] == 128) & (found.scaling["strategy"] == name)]
    assert here["step_s"].iloc[0] == pytest.approx(found.best.step_s)
    changed = found.sensitivity.dropna(subset=["days"])
    assert name in set(changed["strategy"])
    assert changed["ratio"].notna().all()
    plain = name.replace("+q4", "")
    fused = found.effects[found.effects["fused_kernels"]].set_index(["strategy", "gather_bits"])["step_s"]
    assert fused.loc[plain, found.best.plan["gather_bits"]] == pytest.approx(found.best.step_s)
    tables = {table.name: [row[0].text for row in table.rows] for one in searched.sections for table in one.tables}
    for table in ("strategies-table", "bounds-table", "memory-table", "traffic-table", "remedies-table"):
        assert name in tables[table], table
    assert (name in tables["layer-table"]) == (found.best.plan["tp"] > 1 or found.best.plan["parameter_shard"] > 1)


@pytest.mark.parametrize(("model", "fits"), [("pythia-1b", True), ("plamo-13b", False)])
def test_one_gpu_of_a_cluster_makes_a_report(model: str, fits: bool) -> None:
    found = Report(study(load_model(model), load_cluster("abci-a"), Request(1)))
    assert found.study.best.fits == fits
    assert [answer.question for answer in found.recommendation.answers] == QUESTIONS
    found.as_html()


def test_a_batch_larger_than_is_published_is_said_on_top_and_in_the_tables() -> None:
    """Every GPU has a sequence of its own: 128 M tokens per step where nobody asked for so many."""
    found = Report(study(small_model(), cluster(), Request(16384, strategies=["zero1"]), 1e12))
    (note,) = found.heading.notes
    assert note.startswith("That is a large batch")
    assert note in found.as_html()
    assert note in found.as_markdown()
    tables = {table.name: table for section in found.sections for table in section.tables}
    assert "tokens per step: 33,554,432 over all GPUs" in " ".join(row[1].text for row in tables["basis-table"].rows)
    remarks = {row[0].order: row[-1].text for row in tables["scaling-table"].rows}
    assert remarks[16384] == "a larger batch than is published (17 M tokens)"


def test_a_batch_left_open_is_no_larger_than_is_published_where_a_strategy_runs_on_less() -> None:
    """A sequence for each GPU would be 34 M tokens per step; of tensor-parallel GPUs several work on one."""
    found = Report(study(small_model(), cluster(), Request(16384), 1e12))
    comparison = found.study.comparison
    assert comparison.tokens_per_gpu * 16384 == 2**24
    assert "tokens_per_gpu" in comparison.chosen
    assert {row.strategy for row in comparison.rows} == {"tp8"}
    assert "zero3" in comparison.left_out
    assert not found.heading.notes
    frame = found.study.scaling.drop_duplicates("num_gpus").set_index("num_gpus")["tokens_per_step"]
    assert (frame.loc[:32768] == 2**24).all()
    # 20,480 groups of eight GPUs need a sequence each, and there are 8,192.
    assert frame.loc[163840] == 20480 * 2048


def test_gpu_hours_are_told_from_the_least_to_the_most(report: Report) -> None:
    (section,) = [section for section in report.sections if section.name == "scaling"]
    frame = report.study.at_each_count
    cheapest = frame.loc[frame["gpu_hours"].idxmin()]
    costs = f"costs {rounded(cheapest.gpu_hours)} to {rounded(frame['gpu_hours'].max())} GPU-hours, least on"
    assert f"{costs} {cheapest.num_gpus:,}." in section.paragraphs[0]


def test_half_a_batch_is_in_whole_sequences() -> None:
    found = study(small_model(), cluster(), Request(16, strategies=["zero1"], tokens_per_gpu=3 * 2048), 1e11)
    batches = found.sensitivity[found.sensitivity["figure"] == "global batch"]
    assert set(batches["why_not"]) == {""}
    assert list(batches["value"]) == ["0.07 M tokens", "0.20 M tokens"]
    one = study(small_model(), cluster(), Request(16, strategies=["zero1"], tokens_per_gpu=2048), 1e11)
    reasons = one.sensitivity[one.sensitivity["figure"] == "global batch"]["why_not"]
    assert list(reasons) == ["less than a sequence for each rank", ""]


def test_the_most_telling_figure_is_the_one_whose_change_is_told(report: Report) -> None:
    (section,) = [section for section in report.sections if section.name == "sensitivity"]
    reach = (report.study.sensitivity["days"] - report.study.cost.days).abs()
    figure = report.study.sensitivity.loc[reach.idxmax(), "figure"]
    values = report.study.sensitivity.set_index("figure").loc[figure, "value"]
    assert section.paragraphs[0].startswith(f"The {figure} matters most. With ")
    assert any(value in section.paragraphs[0] for value in values)


def test_a_placement_of_the_search_within_the_margin_is_named_beside_the_strategy() -> None:
    found = Report(study(load_model("gpt2-xl"), load_cluster("dgx-h100"), Request(24, strategies=["zero1", "ddp"])))
    assert found.study.further is not None
    placement = described(found.study.further.winner[1])
    note = found.recommendation.answers[0].note
    if faster(found.study.further, found.study.best) is None and placement != found.study.best.strategy:
        assert f"not told apart from {placement}" in note
    assert "clearly faster than the others" not in note


def test_a_mixture_has_the_band_of_mixtures() -> None:
    found = Report(study(load_model("mixtral-8x7b"), load_cluster("dgx-h100"), Request(64)))
    best = found.study.best
    assert best.high_s / best.step_s == pytest.approx(1.53)
    assert best.low_s < best.step_s
    assert "of mixtures of experts" in found.recommendation.answers[3].note


def test_one_gpu_and_one_strategy_make_a_report() -> None:
    alone = replace(cluster(), nics_per_node=0, nic_bytes_per_s=0.0, num_nodes=1)
    found = Report(study(small_model(), alone, Request(1, strategies=["ddp"]), 1e9))
    assert "the only strategy asked for" in found.recommendation.answers[0].note
    assert set(found.study.scaling["num_gpus"]) == {1, 2, 4, 8}
    assert "network of a node" not in set(found.study.sensitivity["figure"])
    found.as_html()


def test_more_gpus_train_sooner_because_their_placement_is_chosen_anew() -> None:
    """One NIC for eight GPUs: strategies alone stall from 64 GPUs on, where a pipeline does not."""
    slow = cluster(nics_per_node=1, nic_bytes_per_s=25e9 / 8)
    found = study(load_model("llama-2-13b"), slow, Request(32))
    fastest = found.at_each_count.set_index("num_gpus")
    assert list(fastest.index[:4]) == [8, 16, 32, 64]
    assert fastest["days"].is_monotonic_decreasing
    alone = found.scaling[found.scaling["strategy"].isin(["zero3", "zero3+q4", "hsdp", "zero1", "tp8"])]
    assert fastest.loc[64, "days"] < 0.97 * alone[alone["num_gpus"] == 64]["days"].min()


def test_strategies_asked_for_are_the_only_ones() -> None:
    found = study(small_model(), cluster(), Request(16, strategies=["zero1", "tp2"], tokens_per_gpu=2048))
    assert set(found.strategies["strategy"]) == {"zero1", "tp2"}
    assert set(found.scaling["strategy"]) == {"zero1", "tp2"}
    assert set(found.effects["strategy"]) == {"zero1", "tp2"}
    half = found.sensitivity[(found.sensitivity["figure"] == "global batch")]
    assert list(half["change"]) == ["half", "twice"]
    Report(found).as_html()


def test_a_run_of_less_than_a_day_is_told_in_hours() -> None:
    found = Report(study(small_model(), cluster(), Request(16), 2e10))
    assert 1 / 24 < found.study.cost.days < 1
    assert "hours (" in found.recommendation.sentence
    assert [answer.answer.split()[-1] for answer in found.recommendation.answers][1::2] == ["hours", "hours"]
    assert set(numbers_in(said(found))) <= in_tables(found)


def test_how_to_run_it_is_told_of_the_recommended_plan_and_without_the_4_bit_gather(report: Report) -> None:
    (section,) = [section for section in report.sections if section.name == "launch"]
    rows = {row[0].text: row[1].text for row in section.tables[0].rows}
    assert report.study.best.strategy == "zero3-node+q4"
    assert "--plan.strategy zero3-node+q4" in rows["flopcast's trainer"]
    assert '"zero_hpz_partition_size": 8' in rows["DeepSpeed, as zero3-node"]
    assert section.remarks[0].endswith("torchtitan: lacks ZeRO-3 kept inside the node and a 4-bit all-gather.")
