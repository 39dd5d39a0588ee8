"""Every case at toy size, by pytest-benchmark: `pytest benchmarks/test_benchmarks.py`."""

import pytest

from benchmarks.cases import CASES

PAIRS = [(case, method) for case in CASES for method in case.make("toy", "cpu")[1]]


@pytest.mark.parametrize(("case", "method"), PAIRS, ids=[f"{c.name}-{m}" for c, m in PAIRS])
def test_case(benchmark, case, method):
    workload, methods = case.make("toy", "cpu")
    benchmark.extra_info.update(workload=workload, method=method)
    benchmark.group = case.name
    benchmark.pedantic(methods[method], rounds=3, iterations=1, warmup_rounds=1)
