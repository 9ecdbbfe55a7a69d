"""The training methods, one file each, and what several of them share."""
