"""Many processes in one run: jobs, workers on this machine and elsewhere, what is resumed, what the index gets."""
