"""x86-64, and the 32-bit processes that run on its kernels."""
