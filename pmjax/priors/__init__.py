"""Priors over the embedding, one file each, and what a prior is."""
