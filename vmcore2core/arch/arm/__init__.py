"""32-bit ARM."""
