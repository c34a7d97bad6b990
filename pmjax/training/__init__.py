"""Both stages of a run: the step, the loop, and evaluation during training."""
