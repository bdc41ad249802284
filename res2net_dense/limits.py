"""The bounds of numbers. Beyond them a run would fill the memory, or hang, before it could say why."""

MAX_CLASSES = 100_000
MAX_PIXELS = 32_766
"""Of an edge; OpenCV refuses to rotate what is larger."""
MAX_BATCH = 100_000
MAX_PROCESSES = 256
"""That load images."""
MAX_THREADS = 1024
MAX_STEPS = 1_000_000_000
MAX_SEED = 2**32 - 1
MAX_IMAGES = 100_000_000
