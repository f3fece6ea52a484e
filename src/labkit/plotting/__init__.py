"""Figures of rows and verdicts, and a sentence for each that says what it shows to those who cannot see it."""

from labkit.plotting.breaks import breaks, breaks_alt
from labkit.plotting.by_pattern import by_pattern, by_pattern_alt
from labkit.plotting.doses import sweep, sweep_alt, swept
from labkit.plotting.inside import heads, heads_alt, parts, parts_alt, patterns, patterns_alt
from labkit.plotting.power import power, power_alt
from labkit.plotting.scale import effective_scale, effective_scale_alt
from labkit.plotting.shapes import jumps, jumps_alt
from labkit.plotting.sizes import emergence, emergence_alt
from labkit.plotting.speed import speed, speed_alt
from labkit.plotting.students import students, students_alt, way
from labkit.plotting.style import condition
from labkit.plotting.verdicts import retention, retention_alt

__all__ = [
    "breaks",
    "breaks_alt",
    "by_pattern",
    "by_pattern_alt",
    "condition",
    "effective_scale",
    "effective_scale_alt",
    "emergence",
    "emergence_alt",
    "heads",
    "heads_alt",
    "jumps",
    "jumps_alt",
    "parts",
    "parts_alt",
    "patterns",
    "patterns_alt",
    "power",
    "power_alt",
    "retention",
    "retention_alt",
    "speed",
    "speed_alt",
    "students",
    "students_alt",
    "sweep",
    "sweep_alt",
    "swept",
    "way",
]
