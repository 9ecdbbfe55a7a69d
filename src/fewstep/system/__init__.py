"""The machine: files, processes, devices, the terminal; no mathematics."""
