"""What ``vmcore-tasks`` shows, as plain records; ``commands/tasks`` prints them."""
