"""``python -m service.cli``, for launchers like ``torchrun`` that start a module."""

from service.cli import main

main()
