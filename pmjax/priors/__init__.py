"""Priors over the embedding, one file each; base.py says what a prior is."""
