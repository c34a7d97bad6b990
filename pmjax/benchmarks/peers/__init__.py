"""Peers of `pmjax.bench`: the same training step and features in another framework."""
