"""gpu_resources.py reads what ptxas prints, of every kernel."""

import re

from benchmarks.gpu_resources import ROOT, Usage, _triton_kernels, parse

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


def test_every_triton_kernel_that_is_launched_is_looked_at():
    launched = set()
    for file in (ROOT / "crs_fast").rglob("triton*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        launched |= {(module, name) for name in re.findall(r"(_\w+)\[\(", file.read_text())}
    kernels = [kernel for _, kernel, *_ in _triton_kernels()]
    functions = [getattr(kernel, "fn", kernel) for kernel in kernels]
    assert {(function.__module__, function.__name__) for function in functions} == launched
