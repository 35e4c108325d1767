"""The supported formats: each file walks one container, so that limits hold before any decoder runs."""
