"""64-bit POWER servers, little-endian."""
