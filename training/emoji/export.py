"""Write adhere-emoji in the layout of diffusers, with averaged weights in float16 and the model card.

    python -m training.emoji.export --data data/emoji --autoencoder data/emoji/run_autoencoder \\
        --run data/emoji/run --to src/adhere/models/adhere-emoji
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from adhere.metrics import psnr
from training.emoji.autoencoder import new_autoencoder, reconstruct, to_tensor
from training.emoji.data import Emoji
from training.emoji.text import new_text_encoder, save_tokenizer
from training.emoji.train import new_network, new_scheduler

DEFAULT_GUIDANCE_SCALE = 2.0  # Stable Diffusion's 7.5 is too high for this model
NUM_PSNR_IMAGES = 256  # per split, for the reconstruction figure of the model card


def write_pipeline(
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
) -> None:
    """Write a StableDiffusionPipeline in float16.

    Args:
        autoencoder: The autoencoder. Like the network and the text encoder, it is converted to float16 in place.
        unet: The network.
        text_encoder: The text encoder.
        tokenizer: The tokenizer.
        folder: The folder to write to.
    """
    pipe: Any = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder / "tokenizer")
    _add_prefix(folder / "text_encoder" / "model.safetensors")
    config = folder / "text_encoder" / "config.json"  # transformers would load float16 where diffusers loads float32
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    index = folder / "model_index.json"
    content = json.loads(index.read_text()) | {"_guidance_scale": DEFAULT_GUIDANCE_SCALE}
    index.write_text(json.dumps(content, indent=2) + "\n")


def _add_prefix(file: Path) -> None:
    """Rename the weights of a text encoder to names that all versions of transformers read, not only 5.6 and later."""
    weights = load_file(file)
    prefix = "text_model."
    save_file({prefix + name.removeprefix(prefix): value for name, value in weights.items()}, file, {"format": "pt"})


def load_weights(module: Any, state: dict[str, torch.Tensor], prefix: str) -> Any:
    """Load the entries of a state dictionary that begin with a prefix.

    Args:
        module: The module to load into.
        state: The state dictionary.
        prefix: Start of the names, which is removed.

    Returns:
        The module, in evaluation mode.
    """
    module.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    return module.eval()


def model_card(modules: dict[str, Any], data: Path, latents_seen: int, autoencoder_images_seen: int, log: Path) -> str:
    """Return the model card. The reconstruction figures are measured on the given modules.

    Args:
        modules: "vae", "unet" and "text_encoder".
        data: Folder that training.emoji.fetch wrote.
        latents_seen: Number of latents that the network was trained on.
        autoencoder_images_seen: Number of images that the autoencoder was trained on.
        log: log.jsonl of the run of the network; the last row holds its loss on held-out images.

    Returns:
        The content of README.md.
    """
    train, held_out = Emoji.load(data, "train"), Emoji.load(data, "held_out")
    losses = json.loads(log.read_text().splitlines()[-1])["held_out_v_loss"]
    held_out_x, train_x = (to_tensor(emoji.subset(NUM_PSNR_IMAGES).images) for emoji in (held_out, train))
    text = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return text.format(
        **{name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in modules.items()},
        max_tokens=modules["text_encoder"].config.max_position_embeddings,
        train_images=len(train),
        train_bases=len({row["base"] for row in train.rows}),
        held_out_images=len(held_out),
        held_out_bases=len({row["base"] for row in held_out.rows}),
        latents_seen=latents_seen,
        autoencoder_images_seen=autoencoder_images_seen,
        psnr_images=NUM_PSNR_IMAGES,
        held_out_psnr=float(psnr(reconstruct(modules["vae"], held_out_x), held_out_x).mean()),
        train_psnr=float(psnr(reconstruct(modules["vae"], train_x), train_x).mean()),
        log_snrs=" / ".join(losses),
        losses=" / ".join(map(str, losses.values())),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder that training.emoji.fetch wrote")
    parser.add_argument(
        "--autoencoder",
        type=Path,
        default=Path("data/emoji/run_autoencoder"),
        help="run folder of training.emoji.autoencoder",
    )
    parser.add_argument(
        "--decoder", type=Path, help="run folder of training.emoji.autoencoder --decoder-of, if there is one"
    )
    parser.add_argument("--run", type=Path, default=Path("data/emoji/run"), help="run folder of training.emoji.train")
    parser.add_argument(
        "--to", type=Path, default=Path("src/adhere/models/adhere-emoji"), help="folder to write the model to"
    )
    args = parser.parse_args()
    state = torch.load(args.run / "checkpoint.pt", weights_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(args.run / "tokenizer")
    text_encoder = load_weights(new_text_encoder(tokenizer), state["average"], "text_encoder.")
    vae = new_autoencoder()  # a new one, because from_pretrained stores the path of its folder in the configuration
    runs = [args.autoencoder, args.decoder] if args.decoder else [args.autoencoder]
    frozen = AutoencoderKL.from_pretrained(runs[-1] / "autoencoder")
    modules = {
        "vae": load_weights(vae, frozen.state_dict(), ""),
        "unet": load_weights(new_network(text_encoder.config.hidden_size), state["average"], "unet."),
        "text_encoder": text_encoder,
    }
    images_seen = sum(torch.load(run / "checkpoint.pt", weights_only=True)["pictures_seen"] for run in runs)
    text = model_card(modules, args.data, state["pictures_seen"], images_seen, args.run / "log.jsonl")
    write_pipeline(modules["vae"], modules["unet"], text_encoder, tokenizer, args.to)
    (args.to / "README.md").write_text(text, encoding="utf-8")
    for file in args.to.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors files are created readable by their owner only
    size_bytes = sum(file.stat().st_size for file in args.to.rglob("*") if file.is_file())
    print(f"{args.to}: {size_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
