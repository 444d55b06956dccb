"""``vmcore-tasks``, one command a file."""
