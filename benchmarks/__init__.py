"""How fast pipekit is; `python -m pytest benchmarks` runs everything, see conftest.py for the suites."""
