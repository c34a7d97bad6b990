"""Devices and processes: the mesh, compilation, collectives, and how processes agree."""
