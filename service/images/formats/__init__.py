"""The formats that are read: each file walks one container, so that its bounds hold before any decoder runs."""
