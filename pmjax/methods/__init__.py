"""Methods for stage 1, one file each, and what a method is."""
