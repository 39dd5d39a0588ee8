"""MiniOneRec's data, from histories over constrained semantic IDs to recall, with a tiny model.
Run: python docs/examples/minionerec.py FOLDER (that holds Industrial_and_Scientific.*.gz)"""

import ast
import csv
import gzip
import sys

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import crs_fast

stem = f"{sys.argv[1]}/Industrial_and_Scientific."
valid, test = (csv.DictReader(gzip.open(f"{stem}{s}.csv.gz", "rt")) for s in ("valid", "test"))  # noqa: SIM115
words = Tokenizer(models.WordLevel({"</s>": 0}, unk_token="</s>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
tokenizer.add_tokens(sum(crs_fast.load_index(stem + "index.json.gz").tokens, []))  # noqa: RUF017
trie, vocab, _ = crs_fast.load_index(stem + "index.json.gz", tokenizer)

torch.manual_seed(0)
sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
texts = ["".join([*ast.literal_eval(r["history_item_sid"]), r["item_sid"]]) for r in valid]
for step in range(200):
    batch = tokenizer(texts[step * 64 % 4480 :][:64], return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    model(**batch, labels=labels).loss.backward()
    optimizer.step(), optimizer.zero_grad()

texts, targets = zip(*((r["history_item_sid"], int(r["item_id"])) for r in test), strict=True)
histories = ["".join(ast.literal_eval(text)) for text in texts[:1000]]
inputs = tokenizer(histories, return_tensors="pt", padding=True)
out = crs_fast.recommend(model.eval(), **inputs, trie=trie, vocab=vocab, by="item")
for k in (1, 10, 50):
    hits = [target in items[:k] for target, items in zip(targets, out.items, strict=False)]
    print(f"recall@{k} {sum(hits) / len(hits):.3f}")
