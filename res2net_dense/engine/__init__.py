"""The training loop and what it needs: optimizers, checkpoints, evaluation, logs, processes, run folders.

Nothing here knows a task, a data set or a configuration: everything arrives as plain keyword arguments.
"""
