"""Carries the best learning rate and batch of small trainings to a large training."""
