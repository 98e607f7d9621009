"""The report's sections, in the order a reader asks."""

from flopcast.reports.document import comparison, evidence, outlook
from flopcast.reports.document.section import Section
from flopcast.reports.document.study import Study


def sections(study: Study) -> tuple[Section, ...]:
    """Everything after the recommendation."""
    return (
        comparison.strategies(study),
        comparison.why(study),
        comparison.memory(study),
        comparison.traffic(study),
        comparison.remedies(study),
        outlook.scaling(study),
        outlook.sensitivity(study),
        outlook.bill(study),
        evidence.trust(study),
        evidence.question(study),
    )
