"""The sample log: answers, and later true labels, in files that calibration and evaluation read."""
