"""The compiled module (csrc/bindings*.cpp). An address is that of a tensor's first element; 0 means
that there is none. Shapes stand with the structs of csrc/; checks stand in crs_fast/ops."""

import enum
from collections.abc import Callable

class DType(enum.Enum):
    float32 = ...
    bfloat16 = ...
    float16 = ...

class Normalize(enum.Enum):
    vocab = ...
    level = ...
    legal = ...

Address = int

class TrieSizes:
    def __init__(self) -> None: ...
    @property
    def codes(self) -> int: ...
    @property
    def starts(self) -> int: ...
    @property
    def words(self) -> int: ...
    @property
    def code_bytes(self) -> int: ...

class TrieArrays:
    def __init__(
        self, *, codes: Address, bits: Address, rank: Address, starts: Address, level: Address
    ) -> None: ...

class TrieBuilder:
    def __init__(
        self,
        *,
        sids: Address,
        num_items: int,
        levels: int,
        num_sorted: int,
        threads: int,
        poll: Callable[[], None],
        poll_seconds: float,
    ) -> None: ...
    def sort(self, *, order: Address) -> None: ...
    def fill(self, arrays: TrieArrays) -> None: ...
    def progress(self) -> float: ...
    @property
    def sizes(self) -> TrieSizes: ...

class TrieInsertion:
    def __init__(
        self, *, trie: Trie, rows: Address, size: int, levels: int, threads: int
    ) -> None: ...
    def plan(self, *, at: Address) -> None: ...
    def fill(self, arrays: TrieArrays) -> None: ...
    @property
    def sizes(self) -> TrieSizes: ...

class TrieRemoval:
    def __init__(self, *, trie: Trie, items: Address, size: int, threads: int) -> None: ...
    def plan(self) -> None: ...
    def fill(self, arrays: TrieArrays) -> None: ...
    @property
    def sizes(self) -> TrieSizes: ...

class Trie:
    def __init__(
        self,
        *,
        codes: Address,
        bits: Address,
        rank: Address,
        starts: Address,
        level: Address,
        levels: int,
        words: int,
        code_bytes: int,
    ) -> None: ...

class Filter:
    def __init__(self, *, words: Address, rank: Address, stride: int) -> None: ...

class Tokens:
    def __init__(
        self,
        *,
        column: Address,
        stride: int,
        width: int,
        terminator: int,
        denied: Address,
        num_denied: int,
    ) -> None: ...

class MaskArgs:
    def __init__(
        self,
        *,
        trie: Trie,
        filter: Filter,
        tokens: Tokens,
        rows_per_filter: int,
        filter_of_row: Address,
        logits: Address,
        out: Address,
        nodes: Address,
        rows: int,
        vocab: int,
        row_stride: int,
        out_stride: int,
        dtype: DType,
        threads: int,
    ) -> None: ...

class StepArgs:
    def __init__(
        self,
        *,
        trie: Trie,
        filter: Filter,
        tokens: Tokens,
        normalize: Normalize,
        inverse_temperature: float,
        logits: Address,
        batch: int,
        beams: int,
        vocab: int,
        row_stride: int,
        dtype: DType,
        scores: Address,
        nodes: Address,
        normalizers: Address,
        out_beams: int,
        out_scores: Address,
        out_nodes: Address,
        out_parents: Address,
        out_codes: Address,
        threads: int,
    ) -> None: ...

def trie_walk(
    *, trie: Trie, codes: Address, rows: int, length: int, nodes: Address, threads: int
) -> None: ...
def trie_rows(*, trie: Trie, items: Address, size: int, codes: Address, threads: int) -> None: ...
def trie_mask(args: MaskArgs) -> None: ...
def trie_step(args: StepArgs) -> None: ...
def residual_lookup(
    *,
    x: Address,
    dtype: DType,
    rows: int,
    dim: int,
    row_stride: int,
    books: Address,
    levels: int,
    codes: int,
    exact: bool,
    threads: int,
    out: Address,
    residual: Address,
    counts: Address,
    sums: Address,
) -> tuple[bool, int]:
    """Whether x is finite, and how many (row, level) pairs were measured again in float64."""

def resolve_collisions(
    *,
    x: Address,
    books: Address,
    items: int,
    levels: int,
    codes: int,
    dim: int,
    sids: Address,
    occupied: Address,
    num_occupied: int,
    members: Address,
    ends: Address,
    groups: int,
) -> bool:
    """Whether every row found a free SID."""

def text_table(
    *, text: Address, offsets: Address, count: int, slots: Address, num_slots: int
) -> int:
    """The position of a text that stands before it too, or -1."""

def text_find(
    *,
    text: Address,
    offsets: Address,
    count: int,
    slots: Address,
    num_slots: int,
    wanted: Address,
    wanted_offsets: Address,
    num_wanted: int,
    positions: Address,
    threads: int,
) -> None: ...
def number_find(
    *,
    numbers: Address,
    size: int,
    number_bytes: int,
    wanted: Address,
    num_wanted: int,
    positions: Address,
    threads: int,
) -> None: ...
def splice(
    *,
    values: Address,
    begin: Address,
    end: Address,
    added: Address,
    bounds: Address,
    shift: Address,
    out: Address,
    size: int,
    count: int,
    item_bytes: int,
    threads: int,
) -> None: ...

# Only where CUDA kernels were built; `stream` is a cudaStream_t.
def trie_walk_cuda(
    *, trie: Trie, codes: Address, rows: int, length: int, nodes: Address, stream: Address
) -> None: ...
def trie_mask_cuda(args: MaskArgs, stream: Address) -> None: ...
def trie_step_workspace(args: StepArgs) -> int: ...
def trie_step_cuda(args: StepArgs, workspace: Address, stream: Address) -> None: ...

cuda_architectures: str  # "" where no CUDA kernels were built
compiler: str
isas: list[str]  # that this processor can run of "portable", "avx2" and "avx512", the widest last
isa: str  # the one that the CPU kernels run with

def use_isa(name: str) -> None:
    """Run the CPU kernels with another one of `isas` from now on."""
