"""Tokenizer and text encoder of adhere-emoji: byte-level BPE fitted to the captions, and a small CLIP text encoder."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 20  # per caption, including the start and the end token
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def fit_tokenizer(captions: Iterable[str], vocab_size: int = 2048) -> CLIPTokenizer:
    """Fit a tokenizer to captions.

    Args:
        captions: The captions.
        vocab_size: Approximate number of tokens.

    Returns:
        A tokenizer that can represent any text, because every byte is a token.
    """
    backend = CLIPTokenizer().backend_tokenizer  # splits text into words as CLIP does
    backend.model = BPE(unk_token=END_TOKEN, end_of_word_suffix=WORD_END)
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(alphabet),
        special_tokens=[START_TOKEN, END_TOKEN],
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    for byte in alphabet:  # a byte that ends no word of the captions would otherwise become the unknown token
        vocab.setdefault(byte + WORD_END, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)  # pyright: ignore[reportArgumentType]


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer, including vocab.json and merges.txt, which older releases of transformers read.

    Args:
        tokenizer: The tokenizer.
        folder: The folder to write to.
    """
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return the token ids of B texts, padded as in StableDiffusionPipeline: (B, MAX_TOKENS)."""
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def new_text_encoder(
    tokenizer: CLIPTokenizer, hidden_size: int = 192, num_layers: int = 4, num_heads: int = 4
) -> CLIPTextModel:
    """Return the text encoder with random weights.

    Args:
        tokenizer: The tokenizer of its input.
        hidden_size: Size of the embedding of a token.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads.

    Returns:
        The text encoder, in training mode.
    """
    start, end = tokenizer("").input_ids
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
            projection_dim=hidden_size,
            attention_dropout=0.0,
        )
    ).train()


def embed(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """Return the embeddings for cross-attention: token ids (B, MAX_TOKENS) -> (B, MAX_TOKENS, hidden_size), float32."""
    return text_encoder(ids).last_hidden_state.to(torch.float32)
