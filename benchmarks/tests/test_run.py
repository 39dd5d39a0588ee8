"""What runs beside the timed calls of a busy case."""

from benchmarks.cases import Case
from benchmarks.run import rows_of, spinning


def test_processes_spin_beside_a_busy_case_and_end_with_it():
    with spinning(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.returncode is not None for process in processes)
    case = Case("walk", lambda size, device: ("work", {"nothing": lambda: None}), (), spinning=1)
    assert rows_of(case, "toy", "cpu", 1)[0]["workload"] == "work; 1 processes spin beside the run"
