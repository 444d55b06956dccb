"""Where offsets, sizes, symbols and constants of the kernel in the dump come from."""
