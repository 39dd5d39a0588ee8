"""TIGER: an encoder-decoder (T5) reads a history of items and writes the next one's semantic ID.
Run: python docs/examples/tiger.py"""

import torch
from transformers import T5Config, T5ForConditionalGeneration

import crs_fast

CODES, ITEMS, HISTORY = 16, 100, 2
torch.manual_seed(0)
embeddings = torch.randn(ITEMS, 16)
codes = crs_fast.RQKMeans(levels=3, codes=CODES).fit(embeddings).encode(embeddings)
unique = torch.cat([codes, torch.randint(CODES, (ITEMS, 1))], 1)  # the last digit tells twins apart
trie = crs_fast.SidTrie.from_sids(unique)
vocab = crs_fast.SidVocab(2 + torch.arange(4 * CODES).view(4, CODES), eos=1)  # 0 pads, 1 ends

after = torch.randperm(ITEMS)  # whoever liked item i likes after[i] next
sizes = dict(d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, dropout_rate=0.0)
config = T5Config(vocab_size=2 + 4 * CODES, decoder_start_token_id=0, **sizes)
model = T5ForConditionalGeneration(config)
optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
tokens = vocab.encode(trie.sids(torch.arange(ITEMS)))  # [N, 4]
for _ in range(300):
    history = torch.randint(ITEMS, (64, HISTORY))
    labels = torch.cat([tokens[after[history[:, -1]]], torch.ones(64, 1, dtype=torch.int64)], 1)
    model(input_ids=tokens[history].flatten(1), labels=labels).loss.backward()
    optimizer.step(), optimizer.zero_grad()

# The decoder begins with one token, so the SID begins at position 1.
processor = crs_fast.SidLogitsProcessor(trie, vocab, prompt_length=1)
history = torch.randint(ITEMS, (100, HISTORY))
beams = dict(num_beams=10, num_return_sequences=10, max_new_tokens=5)
out = model.eval().generate(tokens[history].flatten(1), logits_processor=[processor], **beams)
found = [row[0].item_ids for row in crs_fast.find_items(out[:, 1:], trie, vocab)]
hits = [target in sum(found[10 * i :][:10], []) for i, target in enumerate(after[history[:, -1]])]  # noqa: RUF017
print(f"recall@10 {sum(hits) / len(hits):.2f}, rows that name an item {sum(map(bool, found))}")
