"""Sections on what the report rests on: the question, what was chosen and assumed, and how far to trust it."""

from flopcast.reports.comparison import assumptions, nodes_in_words
from flopcast.reports.document.numbers import digits, gigabytes, percent, thousands, tokens
from flopcast.reports.document.recommendation import median_error
from flopcast.reports.document.section import Section
from flopcast.reports.document.study import Study
from flopcast.reports.document.table import Cell, Table, number, text
from flopcast.reports.frames import rows_of
from flopcast.simulator.band import MIXTURE_LAUNCHED
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.units import format_count

CHOSEN = {
    "seq_len": "tokens per sequence: as in the model's pre-training, for a config.json its longest",
    "tokens_per_gpu": "tokens per step: {batch:,} over all GPUs; near 4 Mi in whole sequences for each GPU, or of "
    "more than 16 Mi the fewest that a strategy runs on",
    "micro_batch": "micro-batch: the fastest that fits, per strategy",
    "recompute": "recomputation: the fastest that fits, per strategy",
    "attention": "attention kernel: what PyTorch runs on that GPU",
    "ep": "ranks that share out the experts: the fastest number, per strategy",
}


def trust(study: Study) -> Section:
    """The band, and the accuracy on the published runs nearest to this one."""
    best, frame = study.costed, study.nearest
    rows = tuple(
        (
            text(row.source),
            text(row.model or row.id),
            text(format_count(row.num_parameters)),
            text(f"{row.num_gpus:,} x {row.gpu}"),
            text(row.strategy),
            number(row.predicted_s),
            number(row.measured_s),
            number(row.ratio, f"{row.ratio:.2f}"),
            text("yes" if row.in_band else "no"),
        )
        for row in rows_of(frame)
    )
    headings = (
        *("source", "model", "parameters", "GPUs", "split", "predicted, s", "measured, s", "ratio", "in the band"),
    )
    calibration = study.cluster.calibration
    seen = "published runs whose framework the constants had not seen"
    most = f"{MIXTURE_LAUNCHED:.1f}"
    widened = (
        f", and of mixtures of experts, which took up to {most} times the forecast" if study.model.num_experts else ""
    )
    if calibration and calibration.band:
        seen, widened = "runs of this machine that its calibration left out", ""
    summary: list[tuple[Cell, ...]] = [
        (text("low end of the band over the forecast"), number(best.low_s / best.step_s)),
        (text("high end of the band over the forecast"), number(best.high_s / best.step_s)),
    ]
    tables = []
    words = "No published run is near this one."
    if len(frame):
        inside, median = int(frame["in_band"].sum()), median_error(study)
        summary += [
            (text("median error on the nearest runs, %"), number(100 * median, percent(median))),
            (text("of the nearest runs, inside their band"), Cell(f"{inside} of {len(frame)}", inside / len(frame))),
        ]
        words = (
            f"On the {len(frame)} published runs nearest to this one (the same GPU or its family, about the size, the "
            f"GPUs and the split) the median error is {percent(median)} %; {inside} of them lie in their "
            "band."
        )
        caption = "Forecast and measurement of the nearest published runs"
        tables.append(Table("nearest-table", caption, headings, rows))
    return Section(
        "trust",
        "How far to trust this",
        (f"The band is the 10 % to 90 % range of the error on {seen}{widened}. {words}",),
        (),
        (*tables, Table("trust-table", "The band", ("figure", "value"), tuple(summary))),
        ("docs/accuracy.md lists the error on every published run by source.",),
    )


def question(study: Study) -> Section:
    """What was asked, what was chosen and assumed, and the sources."""
    model, cluster, comparison = study.model, study.cluster, study.comparison
    gpu = cluster.gpu
    batch = comparison.tokens_per_gpu * comparison.num_gpus
    active = (
        ""
        if model.num_active_parameters == model.num_parameters
        else (f", {thousands(model.num_active_parameters)} of them for one token")
    )
    budget = tokens(study.num_tokens) + ("" if study.tokens_given else ", 20 per parameter")
    asked = (
        ("model", f"{model.name}, {model.num_layers} layers, {thousands(model.num_parameters)} parameters{active}"),
        ("cluster", cluster.name),
        ("GPUs", f"{thousands(comparison.num_gpus)} x {gpu.name}, {nodes_in_words(cluster, comparison.num_gpus)}"),
        ("a GPU", f"{digits(gpu.tensor_flop_per_s / 1e12)} TFLOP/s dense, {digits(gpu.memory_bytes / 2**30)} GiB "
                  f"({gigabytes(gpu.memory_bytes)} GB) at {digits(gpu.memory_bytes_per_s / 1e9)} GB/s"),
        ("in a node", f"{digits(cluster.nvlink_bytes_per_s / 1e9)} GB/s one way per GPU"),
        ("between nodes", f"{cluster.nics_per_node} x {digits(cluster.nic_bytes_per_s * 8e-9)} Gbit/s, "
                          f"{cluster.fabric}"),
        ("tokens per sequence", thousands(comparison.seq_len)),
        ("tokens per step", f"{thousands(batch)}, {thousands(comparison.tokens_per_gpu)} per GPU"),
        ("training", budget),
    )  # fmt: skip
    rows = tuple((text(name), text(words)) for name, words in asked)
    assumed = [*assumptions(model, cluster), *study.cost.assumed]
    basis = [(text("measured"), text(what)) for what in cluster.measured.what] if cluster.measured else []
    if cluster.calibration:
        plans = Plans.of([Plan(**row.plan) for row in comparison.rows])
        basis += [(text("not calibrated"), text(note)) for note in cluster.calibration.notes(model, plans)]
    basis += [(text("assumed"), text(sentence)) for sentence in assumed]
    basis += [(text("chosen"), text(CHOSEN[name].format(batch=batch))) for name in comparison.chosen]
    basis += [(text("source"), text(f"{path}: {source}")) for path, source in sorted(cluster.sources.items())]
    if model.source:
        basis.append((text("source"), text(f"model: {model.source}")))
    basis.append((text("fitted"), text("constants: to published training runs together, each within a stated range")))
    measured = "Its devices were measured" if cluster.measured else "Nothing was measured on this cluster"
    count = f"{len(assumed)} figures are assumed" if len(assumed) > 1 else "one figure is assumed"
    return Section(
        "basis",
        "What it rests on",
        (f"{measured}; {count}. A figure in the cluster file replaces an assumption: give it there with its source.",),
        (),
        (
            Table("question-table", "The question", ("question", "as asked"), rows),
            Table("basis-table", "Assumed, chosen, and from where", ("kind", "what"), tuple(basis)),
        ),
    )
