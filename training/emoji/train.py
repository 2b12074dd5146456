"""Train the network and the text encoder of adhere-emoji on the latents that training.emoji.latents wrote.

    python -m training.emoji.train --data data/emoji --latents data/emoji/run_autoencoder --run data/emoji/run

The network predicts v = alpha_t eps - sigma_t z0 (Salimans & Ho, "Progressive Distillation for Fast Sampling of
Diffusion Models", 2022) under the linear DDPM schedule. The log-SNR lambda = log(alpha_t / sigma_t) follows
0.75 N(-0.5, 1.3^2) + 0.25 U(-4, 4), stratified over each batch. The module training.loss_weighting describes the
weights of the losses. A tenth of the captions is empty, for classifier-free guidance.

The run folder holds checkpoint.pt, log.jsonl and tokenizer/. A run resumes from its checkpoint. `--cooldown` decreases
the learning rate linearly to zero over the run; use a copy of the run folder for it if the training is to continue
afterwards at the full rate.
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
from training.loop import Training
from training.loss_weighting import LossWeighting

REPORTED_LOG_SNRS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)


def new_network(
    text_size: int,
    channels: tuple[int, ...] = (64, 128, 192),
    num_heads: tuple[int, ...] = (2, 4, 6),
    norm_groups: int = 16,
) -> UNet2DConditionModel:
    """Return the network with random weights. It has cross-attention at all resolutions but the finest.

    Args:
        text_size: Size of the text embedding of a token.
        channels: Channels at each resolution, from the finest (16x16).
        num_heads: Attention heads at each resolution.
        norm_groups: Groups of the group normalization.

    Returns:
        The network.
    """
    num_coarse = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * num_coarse,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * num_coarse + ("UpBlock2D",),
        cross_attention_dim=text_size,
        attention_head_dim=num_heads,  # pyright: ignore[reportArgumentType]
        addition_embed_type="text",  # adds the pooled text to the time embedding, which every layer receives
        addition_embed_type_num_heads=4,
        norm_num_groups=norm_groups,
        use_linear_projection=True,
    )


def new_scheduler() -> DDIMScheduler:
    """Return the noise schedule of the training and of the pipeline."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_loss_weighting() -> LossWeighting:
    """Return the distribution of timesteps and the loss weighting of the training."""
    return LossWeighting(
        new_scheduler().alphas_cumprod,
        mean_log_snr=-0.5,
        std_log_snr=1.3,
        uniform_fraction=0.25,
        log_snr_min=-4,
        log_snr_max=4,
    )


class TextToImage(nn.Module):
    """The modules that are trained together. It keeps the running mean losses in the checkpoint.

    Args:
        unet: The network.
        text_encoder: The text encoder.
        weighting: The loss weighting, whose `mean_loss` becomes a buffer.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, weighting: LossWeighting):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        unet.set_attn_processor(AttnProcessor())  # on a CPU a third faster to train than the fused attention
        self.register_buffer("level_loss", weighting.mean_loss)  # the name in existing checkpoints

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Predict v.

        Args:
            x_t: Noisy latents of shape (B, 4, 16, 16).
            t: Timesteps of shape (B,).
            ids: Token ids of shape (B, MAX_TOKENS).

        Returns:
            v of shape (B, 4, 16, 16).
        """
        return self.unet(x_t, t, embed(self.text_encoder, ids)).sample


def loss_function(
    latents: np.ndarray, emoji: Emoji, tokenizer: CLIPTokenizer, weighting: LossWeighting, batch_size: int
) -> Callable[[Any, int], Tensor]:
    """Return the loss that the docstring of this module describes.

    Args:
        latents: V versions of the latents of the training images, shape (V, N, 4, 16, 16).
        emoji: The N training images.
        tokenizer: The tokenizer.
        weighting: Draws the timesteps and weights the losses.
        batch_size: Latents per step.

    Returns:
        A function of (model, seed) that returns a scalar loss.
    """

    def loss(model: TextToImage, seed: int) -> Tensor:
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        index = rng.choice(len(emoji), batch_size, p=emoji.probabilities)
        z0 = torch.from_numpy(latents[rng.integers(len(latents), size=batch_size), index]).float()
        ids = token_ids(tokenizer, [caption(emoji.rows[i], rng) for i in index])
        t = weighting.stratified_timesteps(batch_size, generator)
        losses = v_losses(model, weighting, z0, t, ids, generator)
        return weighting.weight_losses(t, losses).mean()

    return loss


def v_losses(
    model: Any, weighting: LossWeighting, z0: Tensor, t: Tensor, ids: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the mean squared error of v of each example.

    Args:
        model: A TextToImage.
        weighting: Holds alpha_t and sigma_t.
        z0: Clean latents of shape (B, 4, 16, 16).
        t: Timesteps of shape (B,).
        ids: Token ids of shape (B, MAX_TOKENS).
        generator: The generator of the noise.

    Returns:
        Losses of shape (B,).
    """
    alpha, sigma = weighting.alpha[t, None, None, None], weighting.sigma[t, None, None, None]
    eps = torch.randn(z0.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        v = model(alpha * z0 + sigma * eps, t, ids)
    return (v.float() - (alpha * eps - sigma * z0)).square().mean((1, 2, 3))


def report_function(
    latents: np.ndarray, emoji: Emoji, tokenizer: CLIPTokenizer, weighting: LossWeighting
) -> Callable[[Any], dict[str, Any]]:
    """Return a function that measures the v loss on held-out images, with the same noise at every call.

    Args:
        latents: Latents of the held-out images, shape (N, 4, 16, 16).
        emoji: The N held-out images; the captions are their plain names.
        tokenizer: The tokenizer.
        weighting: Holds alpha_t and sigma_t.

    Returns:
        A function of the model that returns the mean loss at each of `REPORTED_LOG_SNRS`.
    """
    z0 = torch.from_numpy(latents).float()
    ids = token_ids(tokenizer, [all_captions(row)[0] for row in emoji.rows])
    count = len(REPORTED_LOG_SNRS)
    log_snrs = torch.tensor(REPORTED_LOG_SNRS).repeat(len(z0) // count + 1)[: len(z0)]
    t = (weighting.log_snr[None] - log_snrs[:, None]).abs().argmin(1)

    @torch.inference_mode()
    def report(model: Any) -> dict[str, Any]:
        losses = v_losses(model, weighting, z0, t, ids, torch.Generator().manual_seed(0))
        means = {
            f"{log_snr:+.0f}": round(float(losses[log_snrs == log_snr].mean()), 4)
            for log_snr in log_snrs[:count].tolist()
        }
        return {"held_out_v_loss": means}

    return report


def load_tokenizer(run: Path, emoji: Emoji) -> CLIPTokenizer:
    """Load the tokenizer of a run. A new run gets one that is fitted to the captions.

    Args:
        run: The run folder.
        emoji: The training images.

    Returns:
        The tokenizer.
    """
    folder = run / "tokenizer"
    if not folder.exists():
        save_tokenizer(fit_tokenizer(sorted({text for row in emoji.rows for text in all_captions(row)})), folder)
    return CLIPTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder that training.emoji.fetch wrote")
    parser.add_argument(
        "--latents", type=Path, default=Path("data/emoji/run_autoencoder"), help="folder training.emoji.latents wrote"
    )
    parser.add_argument("--run", type=Path, default=Path("data/emoji/run"), help="folder of the training run")
    parser.add_argument("--minutes", type=float, default=90, help="duration of the training")
    parser.add_argument("--batch", type=int, default=16, help="latents per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate after the warm-up")
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the weight average per step")
    parser.add_argument(
        "--compile", action="store_true", help="compile the network: five minutes at the start, then a third faster"
    )
    parser.add_argument("--cooldown", action="store_true", help="decrease the learning rate linearly to zero")
    args = parser.parse_args()
    torch.manual_seed(0)
    emoji, held_out = Emoji.load(args.data, "train"), Emoji.load(args.data, "held_out").subset(128)
    tokenizer = load_tokenizer(args.run, emoji)
    weighting = new_loss_weighting()
    text_encoder = new_text_encoder(tokenizer)
    model = TextToImage(new_network(text_encoder.config.hidden_size), text_encoder, weighting)
    training = Training(model, args.run, args.lr, args.ema)
    if args.compile:
        model.unet.compile()  # the EMA network was copied before and is not compiled
    autoencoder = AutoencoderKL.from_pretrained(args.latents / "autoencoder")
    report = report_function(encode(autoencoder, held_out.images), held_out, tokenizer, weighting)
    latents = np.load(args.latents / "latents.npy", mmap_mode="r")
    loss = loss_function(latents, emoji, tokenizer, weighting, args.batch)
    training.fit(loss, report, args.batch, args.minutes, cooldown=args.cooldown)


if __name__ == "__main__":
    main()
