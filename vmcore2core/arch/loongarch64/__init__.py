"""LoongArch, 64 bits."""
