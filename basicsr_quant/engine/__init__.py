"""One loop for every method: training, validation, checkpoints, distribution, logging."""
