"""Many processes in one run: jobs, workers on this machine and on others, resuming, entries of the index."""
