"""Evaluation: metrics, feature extractors, and what runs them."""
