"""The bench of a CUDA machine, as far as it runs without one."""

import re

import pytest

from kresnet.bench import cuda
from kresnet.bench.facts import missing
from kresnet.bench.speed.rotation import Outcome


def test_a_line_tells_medians_quartiles_and_the_ratios_of_neighbours():
    ours = Outcome("kresnet", "mixed_bfloat16", (0.1, 0.2, 0.4))
    theirs = Outcome("timm", "bfloat16", (0.2, 0.6, 0.4), (0.1, 0.2, 0.4))
    (line,) = cuda.rows("frozen", 8, [ours, theirs])
    assert line == ("| frozen | 8 | 40 (30-60) | 20 (17-30) | bfloat16 | 2.00 (1.50-2.50) |")
    (line,) = cuda.rows("learning", 8, [ours, Outcome("timm", failed="not installed: a | b")])
    assert line == "| learning | 8 | 40 (30-60) | not installed: a / b | - | - |"


@pytest.mark.slow
def test_both_train_on_a_processor(capsys, monkeypatch):
    if said := missing(("jax", "timm", "torchvision")):  # not imported: its operators may not load
        pytest.skip(said)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    options = "--variant resnet18 --image-size 32 --batches 4 --turns 2 --steps 1"
    cuda.main(options.split())
    out = capsys.readouterr().out
    assert "resnet18, 32 px, bfloat16; cpu, jax " in out
    found = re.findall(r"^[|] (frozen|learning) [|] 4 [|] (\d+) .*[|] (\d+) ", out, re.MULTILINE)
    assert [norms for norms, *_ in found] == ["frozen", "learning"]
