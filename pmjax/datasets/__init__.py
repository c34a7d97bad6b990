"""Data sets, one file each, and the pipeline that decodes, caches and batches them."""
