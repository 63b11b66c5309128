"""Chooses hyper-parameters. Imports myllm; the only place that imports ray."""
