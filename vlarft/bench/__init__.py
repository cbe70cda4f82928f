"""Measure: cases, baselines, machine limits, results that can be compared. See docs/bench.md."""
