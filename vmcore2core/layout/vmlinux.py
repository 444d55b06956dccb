"""A vmlinux given by the user: placeholder."""
