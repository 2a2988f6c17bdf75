"""How programs are compiled."""

ONCE = {"xla_backend_optimization_level": 0}
"""Compiler options of a program that runs once. On a CPU, tiny's initial parameters compile in a fifth of the time."""
