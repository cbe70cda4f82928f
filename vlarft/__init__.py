"""vlarft: reinforcement fine-tuning of robot policies inside a learned world model."""

__version__ = "0.1.0"
