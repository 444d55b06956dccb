"""MIPS64, big-endian; mips64el adds what differs in little-endian."""
