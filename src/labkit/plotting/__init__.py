"""Figures of rows and verdicts, and a sentence for each that says what it shows to those who cannot see it."""

from labkit.plotting.doses import sweep, sweep_alt, swept
from labkit.plotting.sizes import emergence, emergence_alt
from labkit.plotting.style import condition
from labkit.plotting.verdicts import retention, retention_alt

__all__ = ["condition", "emergence", "emergence_alt", "retention", "retention_alt", "sweep", "sweep_alt", "swept"]
