"""Write adhere-emoji as a diffusers folder: averaged weights in float16, and its model card.

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
from transformers import CLIPTextModel, CLIPTokenizer

from training.emoji.autoencoder import new_autoencoder, psnr, reconstruct, to_tensor
from training.emoji.data import Emoji
from training.emoji.text import new_text_encoder, save_tokenizer
from training.emoji.train import new_network, new_scheduler

GUIDANCE = 2.0  # Stable Diffusion's 7.5 is far too much for it


def write_folder(
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
) -> None:
    """Write the parts as a StableDiffusionPipeline in float16 (the parts are converted in place)."""
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
    config = folder / "text_encoder" / "config.json"  # else transformers loads float16 where diffusers loads float32
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_guidance_scale": GUIDANCE}, indent=2) + "\n")


def part(model: Any, state: dict[str, torch.Tensor], prefix: str) -> Any:
    """`model` with the weights that the averages of a checkpoint keep under `prefix`."""
    model.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    return model.eval()


def card(parts: dict[str, Any], data: Path, network_pictures: int, autoencoder_pictures: int, log: Path) -> str:
    """The model card, with its figures measured now on the parts as they will ship."""
    train, held = Emoji.load(data, "train"), Emoji.load(data, "held_out")
    losses = json.loads(log.read_text().splitlines()[-1])["held_out_v_loss"]
    original, seen = (to_tensor(emoji.thinned(256).pictures) for emoji in (held, train))
    text = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return text.format(
        **{name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in parts.items()},
        length=parts["text_encoder"].config.max_position_embeddings,
        train=len(train),
        bases=len({row["base"] for row in train.rows}),
        held=len(held),
        held_bases=len({row["base"] for row in held.rows}),
        network_pictures=network_pictures,
        autoencoder_pictures=autoencoder_pictures,
        psnr=float(psnr(reconstruct(parts["vae"], original), original).mean()),
        train_psnr=float(psnr(reconstruct(parts["vae"], seen), seen).mean()),
        levels=" / ".join(losses),
        losses=" / ".join(map(str, losses.values())),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--autoencoder", type=Path, default=Path("data/emoji/run_autoencoder"))
    parser.add_argument("--decoder", type=Path, help="run folder of training.emoji.autoencoder --decoder-of, if any")
    parser.add_argument("--run", type=Path, default=Path("data/emoji/run"))
    parser.add_argument("--to", type=Path, default=Path("src/adhere/models/adhere-emoji"))
    args = parser.parse_args()
    state = torch.load(args.run / "checkpoint.pt", weights_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(args.run / "tokenizer")
    text_encoder = part(new_text_encoder(tokenizer), state["average"], "text_encoder.")
    vae = new_autoencoder()  # a fresh one: from_pretrained notes the folder it came from in the configuration
    runs = [args.autoencoder, args.decoder] if args.decoder else [args.autoencoder]
    frozen = AutoencoderKL.from_pretrained(runs[-1] / "autoencoder")
    parts = {
        "vae": part(vae, frozen.state_dict(), ""),
        "unet": part(new_network(text_encoder.config.hidden_size), state["average"], "unet."),
        "text_encoder": text_encoder,
    }
    seen = sum(torch.load(run / "checkpoint.pt", weights_only=True)["pictures_seen"] for run in runs)
    text = card(parts, args.data, state["pictures_seen"], seen, args.run / "log.jsonl")
    write_folder(parts["vae"], parts["unet"], text_encoder, tokenizer, args.to)
    (args.to / "README.md").write_text(text, encoding="utf-8")
    for file in args.to.rglob("*.safetensors"):
        file.chmod(0o644)  # they are written for their owner only
    size = sum(file.stat().st_size for file in args.to.rglob("*") if file.is_file())
    print(f"{args.to}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
