"""The training loop, its stages, optimizers and metrics."""
