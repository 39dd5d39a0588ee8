"""Every case at toy size, by pytest-benchmark: `pytest benchmarks`."""

import pytest

from benchmarks.cases import CASES

PAIRS = [(case.name, i) for case in CASES for i in range(len(case.make("toy", "cpu")[1]))]


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_case(benchmark, name, way):
    (case,) = [case for case in CASES if case.name == name]
    workload, ways = case.make("toy", "cpu")
    label = list(ways)[way]
    benchmark.extra_info.update(workload=workload, way=label)
    benchmark.group = name
    benchmark.pedantic(ways[label], rounds=3, iterations=1, warmup_rounds=1)
