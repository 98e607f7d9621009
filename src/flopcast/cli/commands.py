"""The application with every command of this folder registered."""

from flopcast.cli import benchmarks, measurement, planning, report, search, timeline, training, trust
from flopcast.cli.app import app

__all__ = ["app", "benchmarks", "measurement", "planning", "report", "search", "timeline", "training", "trust"]
