"""Address spaces of the dump: physical, kernel, user."""
