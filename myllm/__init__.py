"""Trains one GPT. Knows nothing of Ray, of searches or of tables."""
