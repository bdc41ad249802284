"""Scores: each evaluator takes predictions in batch by batch and gives a flat map of metrics."""
