"""The range test finds a rate on the way down, draws it, and leaves nothing else behind."""

import itertools
import json
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kresnet import cli
from kresnet.console import Console
from kresnet.errors import ConfigError, ResourceError
from kresnet.train import lr_find
from kresnet.train.lr_find import HIGHEST, LOWEST, STEPS, RateTest, longest_valley, rate_of
from kresnet.workflow import find_rate

SETTINGS = {"variant": "resnet8_cifar", "precision": "float32", "batch_size": 16}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Four kinds of handwritten digits, 20 images of each."""
    root = tmp_path_factory.mktemp("data") / "digits"
    data = load_digits()
    for label in range(4):
        (root / f"digit {label}").mkdir(parents=True)
        for k, pixels in enumerate(data.images[data.target == label][:20]):
            grey = (pixels * 255 / 16).round().astype("uint8")
            Image.fromarray(grey).resize((32, 32)).save(root / f"digit {label}" / f"{k}.png")
    return root


def curve(falls=(1e-5, 1e-2), diverges=0.3):
    """Losses that fall between two rates and grow from a third on."""
    rates = [rate_of(k) for k in range(STEPS)]
    log, (low, high) = np.log10(rates), np.log10(falls)
    losses = 2.0 - 1.5 * np.clip((log - low) / (high - low), 0, 1)
    losses += np.maximum(log - np.log10(diverges), 0) * 9
    losses += 1e-3 * np.random.default_rng(1).normal(size=STEPS)
    return RateTest(tuple(rates), tuple(losses), 5e-5, diverged=True)


def test_rates_grow_by_one_factor_from_the_lowest_to_the_highest():
    rates = np.array([rate_of(k) for k in range(STEPS)])
    assert rates[0] == pytest.approx(LOWEST)
    assert rates[-1] == pytest.approx(HIGHEST)
    np.testing.assert_allclose(rates[1:] / rates[:-1], rates[1] / rates[0])


def test_suggestions_are_where_the_loss_falls():
    found = curve()
    assert 1e-5 < found.valley < 1e-2
    assert 1e-5 < found.steep < 1e-2
    assert found.valley in found.rates
    higher = curve(falls=(1e-3, 1e-1))
    assert higher.valley > found.valley * 5


def test_where_no_rate_lowers_the_loss_none_is_suggested():
    rates = tuple(rate_of(k) for k in range(40))
    found = RateTest(rates, tuple(np.linspace(1.0, 3.0, 40)), 1e-3, diverged=False)
    assert (found.valley, found.steep) == (None, None)
    assert "no rate lowered the loss; the plan's 0.001" in str(found)
    short = RateTest(rates[:3], (1.0, 2.0, 5.0), 1e-3, diverged=True)
    assert (short.valley, short.steep) == (None, None)
    noise = 1.0 + 0.004 * np.random.default_rng(0).uniform(-1, 1, 40)
    flat = RateTest(rates, tuple(noise), 1e-3, diverged=False)
    assert (flat.valley, flat.steep) == (None, None)


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_fall_is_found_among_all(seed):
    losses = np.random.default_rng(seed).normal(size=9).tolist()

    def falls(places):
        return all(losses[a] > losses[b] for a, b in itertools.pairwise(places))

    longest = max(
        (
            places
            for size in range(2, 10)
            for places in itertools.combinations(range(9), size)
            if falls(places)
        ),
        key=lambda places: (len(places), -places[-1]),
    )
    end, start = longest[-1], max(longest[-1] - len(longest), 0)
    place = longest_valley(losses)
    assert start <= place <= end
    third = (end - start) / 3
    assert place == start + int(third) + int(third / 2)


def test_it_ends_where_the_loss_diverges_or_is_not_finite():
    losses = lr_find._Smoothed()
    assert losses.add(0.01, 0.1)  # by chance, which is not the best of all that follows
    assert all(losses.add(0.1 * k, 1.0) for k in range(1, 40))
    assert losses.values[-1] == pytest.approx(1.0, abs=0.05)
    assert not losses.add(2.0, 300.0)
    assert losses.diverged
    other = lr_find._Smoothed()
    assert other.add(0.1, 2.0)
    assert not other.add(0.2, float("nan"))
    assert (other.diverged, len(other.values)) == (True, 1)


def test_a_rate_is_found_on_digits_and_nothing_else_is_left(digits, shared, tmp_path, monkeypatch):
    weights = next((shared / "weights" / "cifar10").glob("resnet20*.th"))
    before = sha256(weights.read_bytes()).hexdigest()
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    lines = []
    console = Console(quiet=True)
    monkeypatch.setattr(console, "line", lambda topic, text: lines.append(topic))
    found = find_rate(
        digits, out="lr.png", weights=str(weights), console=console, lr=2e-3, train_from=2,
        **SETTINGS | {"variant": "resnet20_cifar"},
    )  # fmt: skip
    assert found.planned == 2e-3
    assert LOWEST < found.valley < found.rates[-1] <= HIGHEST
    assert all(np.isfinite(found.losses))
    assert "plan" in lines
    assert [path.name for path in folder.iterdir()] == ["lr.png"]
    with Image.open(folder / "lr.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert picture.size[0] > 500
    assert len(np.unique(colours, axis=0)) > 10
    assert sha256(weights.read_bytes()).hexdigest() == before


@pytest.mark.slow
def test_the_command_prints_one_json_value_and_ctrl_c_leaves_nothing(
    digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = ["kresnet", "lr-find", str(digits), "--variant", "resnet8_cifar", "--weights", "none",
               "--set", "batch_size=8", "--set", "precision=float32", "--json"]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(lr_find, "STEPS", 12)
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    answer = json.loads(capsys.readouterr().out)
    assert {"valley", "steep", "rates", "losses", "planned", "diverged", "picture"} <= set(answer)
    assert len(answer["rates"]) == len(answer["losses"]) <= 12
    (tmp_path / "lr.png").unlink()

    def interrupted(step):
        if step == 2:
            raise KeyboardInterrupt
        return 1e-4

    monkeypatch.setattr(lr_find, "rate_of", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_where_the_plot_cannot_be_is_told_first(digits, tmp_path):
    with pytest.raises(ConfigError, match=r"folder of the plot must exist"):
        find_rate(digits, out=tmp_path / "no" / "lr.png", console=Console(quiet=True), **SETTINGS)
    with pytest.raises(ResourceError, match=r"picture that can be written, as lr.png"):
        curve().save_picture(tmp_path / "lr.doc")
