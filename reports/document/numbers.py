"""Numbers as the report's reader sees them: enough digits to use, the same wherever one number stands."""

import math

JOULES_PER_MWH = 3.6e9


def digits(value: float) -> str:
    """Three significant digits, and all of the whole part: ``0.0512``, ``4.66``, ``41.8``, ``1,507``."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(abs(value)))
    if round(abs(value), decimals) >= 10.0 ** (3 - decimals):  # 9.996 rounds up to 10.0
        decimals -= 1
    return f"{value:,.{min(max(decimals, 0), 6)}f}"


def percent(share: float) -> str:
    """A fraction as per cent with one decimal: ``0.4627`` -> ``"46.3"``."""
    return f"{100 * share:.1f}" if math.isfinite(share) else "-"


def tokens(number: float) -> str:
    """A token budget: ``262 G tokens``, ``15.0 T tokens``."""
    if number < 1e9:
        return counted(round(number), "token") if number < 1e6 else f"{digits(number / 1e6)} M tokens"
    return f"{digits(number / 1e12)} T tokens" if number >= 1e12 else f"{digits(number / 1e9)} G tokens"


def millions(number: float) -> str:
    """In millions with two decimals, or three digits where those are too few or too many: ``4.19``, ``480,000``."""
    return digits(number / 1e6) if number < 1e4 or number >= 1e9 else f"{number / 1e6:,.2f}"


def time_unit(days: float) -> tuple[str, float]:
    """The unit that a run of so many days is told in, and how many of it a day has."""
    return ("days", 1.0) if days >= 1 else ("hours", 24.0) if days >= 1 / 24 else ("minutes", 1440.0)


def gigabytes(num_bytes: float) -> str:
    """GB (1e9 bytes), three significant digits and all of the whole part."""
    return digits(num_bytes / 1e9)


def rounded(value: float) -> str:
    """Three significant digits and no decimals, for what a forecast cannot know better: ``41,800``."""
    if not math.isfinite(value) or value == 0:
        return digits(value)
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.0f}" if abs(value) >= 100 else digits(value)


def counted(number: int, noun: str) -> str:
    """A whole number of something: ``1 token``, ``4,096 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def thousands(value: float) -> str:
    """A whole number with separators: ``41,827``."""
    return f"{value:,.0f}"
