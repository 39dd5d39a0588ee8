"""STATIC's `sparse_transition_torch` with crs_fast's ops: one `trie_step` per level.
Run: python docs/examples/static.py"""

import torch

import crs_fast
from crs_fast import ops


@torch.inference_mode()
def sparse_transition(model, batch_size, beam_size, start_token, trie, tokens):
    """As STATIC's function: token ids [batch, beams, levels], best first. `model` maps token ids
    [batch x beams, 1] to logits [batch x beams, 1, V]. Takes no CSR tables, branch factors or
    `tokens_per_beam`: every legal continuation of every beam competes."""
    scores = torch.zeros(batch_size, 1, device=trie.device)
    nodes = torch.zeros(batch_size, 1, dtype=torch.int64, device=trie.device)  # 0 is the root
    last = torch.full_like(nodes, start_token)
    buffer = last[..., None][..., :0]
    for _ in range(trie.num_levels):
        logits = model(last.clamp(min=0).view(-1, 1))[:, 0]
        scores, nodes, parents, last = ops.trie_step(
            logits, scores, nodes, trie.tensors, tokens, num_beams=beam_size
        )
        history = buffer.gather(1, parents[..., None].expand(-1, -1, buffer.shape[2]))
        buffer = torch.cat([history, last[..., None]], 2)
    return buffer


if __name__ == "__main__":
    torch.manual_seed(0)
    vocab_size, sids = 256, torch.randint(256, (10_000, 4))
    trie = crs_fast.SidTrie.from_sids(sids)
    tokens = ops.token_tensors(torch.arange(vocab_size).expand(4, -1))  # a code is its own token
    model = torch.nn.Embedding(vocab_size, vocab_size)  # the next token depends on the last one
    found = sparse_transition(model, 2, 20, 0, trie, tokens)
    print(found[0, 0].tolist(), "is item", trie.items(found[0, :1]))
    print(sum(map(len, trie.items(found[0]))), "items in 20 beams")
