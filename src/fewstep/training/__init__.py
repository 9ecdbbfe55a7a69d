"""The trainer, averages, checkpoints, run folders and logs. Importing this imports no torch."""
