"""Shared state of several replicas in Redis. Only this folder uses Redis."""
