"""What x86-64 and i386 share."""
