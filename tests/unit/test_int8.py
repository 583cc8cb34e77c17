"""Kernels of eight bits, and the files that hold them."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from kresnet.errors import WeightsError
from kresnet.zoo.checkpoint import read_checkpoint
from kresnet.zoo.int8 import FORMAT, expanded, packed


def test_a_kernel_is_within_half_a_step_of_its_channel_and_the_rest_is_exact():
    rng = np.random.default_rng(0)
    sizes = np.array([1e-3, 1.0, 50.0, 0.0])
    kernel = (rng.normal(size=(3, 3, 8, 4)) * sizes).astype("float32")
    gamma = rng.normal(size=4).astype("float32")
    small = packed({"conv/kernel": kernel, "conv/gamma": gamma})
    assert small["conv/kernel"].dtype == np.int8
    again = expanded(small)
    assert set(again) == {"conv/kernel", "conv/gamma"}
    half = np.abs(kernel).max((0, 1, 2)) / 127 / 2
    assert (np.abs(again["conv/kernel"] - kernel) <= half * 1.001).all()
    assert (np.abs(again["conv/kernel"] - kernel).max((0, 1, 2))[:3] > 0).all()
    np.testing.assert_array_equal(again["conv/gamma"], gamma)


@pytest.mark.parametrize("scale", [None, np.ones(5, "float32")])
def test_a_kernel_without_its_scales_is_refused(scale, tmp_path):
    arrays = {"stem_conv1/kernel": np.ones((3, 3, 3, 4), np.int8)}
    arrays |= {} if scale is None else {"stem_conv1/kernel_scale": scale}
    save_file(arrays, tmp_path / "bad.safetensors", {"format": FORMAT})
    with pytest.raises(WeightsError, match="a scale for each channel"):
        read_checkpoint(tmp_path / "bad.safetensors")


def test_a_file_is_expanded_when_it_is_read_and_another_int8_array_is_not(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype("float32")
    small = packed({"stem_conv1/kernel": kernel})
    save_file(small, tmp_path / "ours.safetensors", {"format": FORMAT})
    save_file(small, tmp_path / "foreign.safetensors", {"format": "pt"})
    ours = read_checkpoint(tmp_path / "ours.safetensors")
    np.testing.assert_array_equal(ours["stem_conv1/kernel"], expanded(small)["stem_conv1/kernel"])
    assert read_checkpoint(tmp_path / "foreign.safetensors")["stem_conv1/kernel"].dtype == np.int8
