"""i386: 32-bit x86 kernels."""
