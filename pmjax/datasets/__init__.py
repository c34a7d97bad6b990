"""Data sets, one file each, and the pipeline that decodes and caches them."""
