"""The report's sections, in the order a reader asks."""

from flopcast.reports.document import comparison, evidence, launch, outlook
from flopcast.reports.document.section import Section
from flopcast.reports.document.study import Study


def sections(study: Study) -> tuple[Section, ...]:
    """Everything after the recommendation; of plans that fit no GPU neither traffic nor what would shorten them."""
    would_run = study.best.fits or study.on_more is None
    changes = would_run or study.sensitivity["days"].notna().any()
    return (
        comparison.strategies(study),
        comparison.why(study),
        comparison.memory(study),
        *((comparison.traffic(study), comparison.remedies(study)) if would_run else ()),
        *((launch.running(study),) if would_run else ()),
        outlook.scaling(study),
        *((outlook.sensitivity(study),) if changes else ()),
        outlook.bill(study),
        evidence.trust(study),
        evidence.question(study),
    )
