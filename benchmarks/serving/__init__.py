"""How fast the service is, beside its peers and the machine's own limit, all in one run.

`python -m benchmarks.serving` measures and writes `benchmarks/results/*.json`; `report` draws docs/performance.md of
one. The choices are in docs/decisions/0014-benchmarks.md.
"""
