"""``python -m vmcore2core``."""

from vmcore2core.cli import main

main()
