"""The text side of adhere-emoji: a byte-level BPE vocabulary fitted to the captions, and a small CLIP text encoder."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LENGTH = 20  # tokens, the two at the ends included
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def fit_tokenizer(captions: Iterable[str], size: int = 2048) -> CLIPTokenizer:
    """A CLIPTokenizer with about `size` tokens; any text can be written with it, as every byte is a token."""
    backend = CLIPTokenizer().backend_tokenizer  # for CLIP's way of splitting text into words
    backend.model = BPE(unk_token=END, end_of_word_suffix=WORD_END)
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=size - len(alphabet),
        special_tokens=[BEGIN, END],
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    for byte in alphabet:  # else a byte that ends no word of the captions would be read as the end of the text
        vocab.setdefault(byte + WORD_END, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)  # pyright: ignore[reportArgumentType]


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer with vocab.json and merges.txt, which older releases of transformers read."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(B, LENGTH), padded as StableDiffusionPipeline pads."""
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def new_text_encoder(tokenizer: CLIPTokenizer, hidden: int = 192, layers: int = 4, heads: int = 4) -> CLIPTextModel:
    """The text encoder, freshly drawn."""
    begin, end = tokenizer("").input_ids
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
            projection_dim=hidden,
            attention_dropout=0.0,
        )
    ).train()


def embed(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """What the network attends to: (B, LENGTH, hidden)."""
    return text_encoder(ids).last_hidden_state.to(torch.float32)
