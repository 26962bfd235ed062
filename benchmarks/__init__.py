"""Benchmarks of nbi_plus against its peers, each in a virtual environment of its own."""
