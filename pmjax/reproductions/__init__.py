"""Reproductions of the paper's figures and tables, one file each."""
