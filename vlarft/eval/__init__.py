"""Evaluation: how good imaginations are, with intervals that respect episodes."""
