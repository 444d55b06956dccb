"""MIPS64, big-endian; mips64el has the rest of its little-endian twin."""
