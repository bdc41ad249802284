"""Data sets: reading images and annotations, transforming them, and batching them as `list[Sample]`."""
