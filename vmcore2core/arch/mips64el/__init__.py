"""MIPS64, little-endian: what differs from mips64."""
