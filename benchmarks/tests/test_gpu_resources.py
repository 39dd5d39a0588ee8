"""gpu_resources.py reads what ptxas prints."""

from benchmarks.gpu_resources import Usage, parse

SAID = """
ptxas info    : Compiling entry function '_Z4walkPf' for 'sm_90'
ptxas info    : Function properties for _Z4walkPf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 71 registers, used 1 barriers, 22704 bytes smem
ptxas info    : Compiling entry function 'step' for 'sm_90'
ptxas info    : Function properties for step
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


def test_what_ptxas_prints_is_read():
    first, second = parse(SAID, "sm_90")
    assert first == Usage(first.kernel, "sm_90", registers=71, spilled=12, shared=22704)
    assert first.kernel.startswith(("walk", "_Z4walk"))
    assert second == Usage("step", "sm_90", registers=32, spilled=0, shared=0)
