"""TRL: SFT teaches the tokens of items, then GRPO learns from rewards what each kind of user likes.
Run: python docs/examples/grpo.py (needs trl and datasets; about a minute on two CPU cores)"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import crs_fast
from crs_fast.integrations import trl

torch.manual_seed(0)
films = [f"film{f}" for f in range(32)]
words = ["<pad>", "<eos>", "user0", "user1", "user2", "user3", "likes", *films]
backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes))
vocab = crs_fast.SidVocab.extend(tokenizer, model, levels=2, codes=8)
trie = crs_fast.SidTrie.from_sids([[f % 8, f // 8] for f in range(32)], films)
common = dict(report_to=[], use_cpu=True, disable_tqdm=True, output_dir=tempfile.mkdtemp())

sids = [[vocab.begin, *sid, vocab.end] for sid in vocab.encode(trie.sids(films)).tolist()]
texts = Dataset.from_dict({"prompt": films, "completion": tokenizer.batch_decode(sids)})
sft = SFTConfig(max_steps=40, per_device_train_batch_size=32, learning_rate=3e-3, **common)
SFTTrainer(model, sft, train_dataset=texts, processing_class=tokenizer).train()

likes = [{"prompt": f"user{u} likes", "item_id": [f"film{u}", f"film{u + 8}"]} for u in range(4)]
batch = dict(num_generations=16, per_device_train_batch_size=64, max_steps=120, learning_rate=1e-3)
how = dict(processing_class=tokenizer, rollout_func=trl.rollout(trie, vocab))
data, reward = Dataset.from_list(likes * 16), trl.item_reward(trie, vocab)
trainer = GRPOTrainer(model, reward, GRPOConfig(beta=0.0, **batch, **common), data, **how)
trainer.train()
rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
print(f"reward {rewards[0]:.2f} at first, {rewards[-1]:.2f} at last")
