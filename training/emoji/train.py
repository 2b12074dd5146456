"""Train adhere-emoji's network and text encoder on the latents that training.emoji.latents wrote.

    python -m training.emoji.train --data data/emoji --latents data/emoji/run_autoencoder --run data/emoji/run

The network predicts v = alpha_t eps - sigma_t z0 (Salimans & Ho, 2022) under the linear DDPM schedule. Log-SNR lambda =
log(alpha/sigma) is drawn, evenly over each batch, from 0.75 N(-0.5, 1.3^2) + 0.25 U(-4, 4); how losses are weighted:
training.levels. A tenth of the captions is empty, for guidance.

The run folder holds checkpoint.pt (resumed from when it exists), log.jsonl and tokenizer/. `--cooldown` brings the
learning rate linearly to zero over the run: branch from a copy of the run folder for it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.emoji.data import Emoji, all_captions, caption
from training.emoji.latents import encode
from training.emoji.text import embed, fit_tokenizer, new_text_encoder, save_tokenizer, token_ids
from training.levels import Levels
from training.loop import Training


def new_network(
    text_size: int, blocks: tuple[int, ...] = (64, 128, 192), heads: tuple[int, ...] = (2, 4, 6), groups: int = 16
) -> UNet2DConditionModel:
    """The network, freshly drawn: text is attended to from 8x8 down."""
    deep = len(blocks) - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=blocks,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deep,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * deep + ("UpBlock2D",),
        cross_attention_dim=text_size,
        attention_head_dim=heads,  # pyright: ignore[reportArgumentType]
        addition_embed_type="text",  # pooled, and added to the time's: what is drawn is known to every layer at once
        addition_embed_type_num_heads=4,
        norm_num_groups=groups,
        use_linear_projection=True,
    )


def new_scheduler() -> DDIMScheduler:
    """The schedule of the noise, for training and for the pipeline."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_levels() -> Levels:
    """The noise levels, as drawn in training."""
    return Levels(new_scheduler().alphas_cumprod, mean=-0.5, width=1.3, even=0.25, low=-4, high=4)


class TextToImage(nn.Module):
    """All that is trained together, and the running mean of each level's loss, kept with it in the checkpoint."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, levels: Levels):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        unet.set_attn_processor(AttnProcessor())  # a third faster to train on a CPU than the fused attention
        self.register_buffer("level_loss", levels.loss)

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x_t, t, embed(self.text_encoder, ids)).sample


def loss_function(
    latents: np.ndarray, emoji: Emoji, tokenizer: CLIPTokenizer, levels: Levels, batch: int
) -> Callable[[Any, int], Tensor]:
    """The loss above, as a function of a TextToImage and the step."""

    def loss(model: TextToImage, step: int) -> Tensor:
        rng, generator = np.random.default_rng(step), torch.Generator().manual_seed(step)
        index = rng.choice(len(emoji), batch, p=emoji.weight)
        z0 = torch.from_numpy(latents[rng.integers(len(latents), size=batch), index]).float()
        ids = token_ids(tokenizer, [caption(emoji.rows[i], rng) for i in index])
        t = levels.spread(batch, generator)
        losses = v_losses(model, levels, z0, t, ids, generator)
        return levels.balanced(t, losses).mean()

    return loss


def v_losses(model: Any, levels: Levels, z0: Tensor, t: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of v for each latent, (B,)."""
    alpha, sigma = levels.alpha[t, None, None, None], levels.sigma[t, None, None, None]
    eps = torch.randn(z0.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(alpha * z0 + sigma * eps, t, ids)
    return (out.float() - (alpha * eps - sigma * z0)).square().mean((1, 2, 3))


def report_function(
    latents: np.ndarray, emoji: Emoji, tokenizer: CLIPTokenizer, levels: Levels
) -> Callable[[Any], dict[str, Any]]:
    """v loss of held-out pictures with their plain names, by level: the same noise each time."""
    z0 = torch.from_numpy(latents).float()
    ids = token_ids(tokenizer, [all_captions(row)[0] for row in emoji.rows])
    lams = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]).repeat(len(z0) // 8 + 1)[: len(z0)]
    t = (levels.lam[None] - lams[:, None]).abs().argmin(1)

    @torch.inference_mode()
    def report(model: Any) -> dict[str, Any]:
        losses = v_losses(model, levels, z0, t, ids, torch.Generator().manual_seed(0))
        by_level = {f"{lam:+.0f}": round(float(losses[lams == lam].mean()), 4) for lam in lams[:8].tolist()}
        return {"held_out_v_loss": by_level}

    return report


def load_tokenizer(run: Path, emoji: Emoji) -> CLIPTokenizer:
    """The run's tokenizer; fitted to the captions when the run is new."""
    folder = run / "tokenizer"
    if not folder.exists():
        save_tokenizer(fit_tokenizer(sorted({text for row in emoji.rows for text in all_captions(row)})), folder)
    return CLIPTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--latents", type=Path, default=Path("data/emoji/run_autoencoder"))
    parser.add_argument("--run", type=Path, default=Path("data/emoji/run"))
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the weight average")
    parser.add_argument("--compile", action="store_true", help="a third faster, after five minutes of compiling")
    parser.add_argument("--cooldown", action="store_true", help="learning rate falls linearly to zero over this run")
    args = parser.parse_args()
    torch.manual_seed(0)
    emoji, held_out = Emoji.load(args.data, "train"), Emoji.load(args.data, "held_out").thinned(128)
    tokenizer = load_tokenizer(args.run, emoji)
    levels = new_levels()
    text_encoder = new_text_encoder(tokenizer)
    model = TextToImage(new_network(text_encoder.config.hidden_size), text_encoder, levels)
    training = Training(model, args.run, args.lr, args.ema)
    if args.compile:
        model.unet.compile()  # the average, copied before, is not
    autoencoder = AutoencoderKL.from_pretrained(args.latents / "autoencoder")
    report = report_function(encode(autoencoder, held_out.pictures), held_out, tokenizer, levels)
    latents = np.load(args.latents / "latents.npy", mmap_mode="r")
    loss = loss_function(latents, emoji, tokenizer, levels, args.batch)
    training.fit(loss, report, args.batch, args.minutes, cooldown=args.cooldown)


if __name__ == "__main__":
    main()
