"""Families of neural nets, one file each, and their layers."""
