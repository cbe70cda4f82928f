"""Reinforcement fine-tuning: rewards, group advantages, clipped objective, one training loop."""
