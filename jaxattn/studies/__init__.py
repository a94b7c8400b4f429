"""Questions that take more than one training run."""
