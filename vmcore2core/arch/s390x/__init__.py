"""s390x: IBM Z, 64 bits."""
