"""Walkers of kernel structures, one module per kernel subsystem."""
