"""Data sets: reading pictures and annotations, transforming them, and batching them as `list[Sample]`."""
