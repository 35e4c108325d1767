"""The sample log: what was answered, and later the truth, in files that calibration and evaluation read."""
