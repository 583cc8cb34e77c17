"""The backbone in the package: its file, its card, and what it stands in for."""

import json

import numpy as np
import pytest
from conftest import randomize

from kresnet.console import Console
from kresnet.errors import ConfigError, ResourceError
from kresnet.workflow.choice import Choice, decide, with_weights
from kresnet.zoo import build, card_for, embedded
from kresnet.zoo.catalog import as_text, describe
from kresnet.zoo.download import fetch_weights, find_weights

CARD = {
    "classes": ["ant", "bee", "cat"],
    "train_size": 64,
    "licence": "Apache-2.0",
    "probes": {"one": 0.875, "two": 0.5},
}


@pytest.fixture(scope="module")
def model():
    return randomize(build(embedded.VARIANT, num_classes=3, input_shape=(64, 64)))


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("embedded") / "embedded.safetensors"
    embedded.write_embedded(model, file, image_size=96, card=CARD)
    return file


@pytest.fixture
def carried(file, monkeypatch):
    """An installation that carries `file`."""
    monkeypatch.setattr(embedded, "path", lambda: file)
    return file


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A machine that can reach nothing and has nothing in its cache."""
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))

    def refuse(*args):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("kresnet.zoo.download._download", refuse)


def test_the_network_comes_back_with_what_it_expects_and_nearly_its_outputs(model, carried):
    again = build("resnet10t.embedded", input_shape=(64, 64))
    assert again.preprocessing.image_size == 96
    assert again.output_shape == (None, 3)
    images = np.random.default_rng(1).normal(size=(4, 64, 64, 3)).astype("float32")
    one, other = (np.asarray(m(images)) for m in (model, again))
    spread = one.std()
    assert 0 < np.abs(one - other).max() < 0.2 * spread


def test_zoo_show_tells_how_it_was_made(carried):
    said = as_text("resnet10t.embedded")
    assert "Apache-2.0" in said
    assert "3 (its own)" in said
    assert "ant, bee, cat" in said
    assert "one 0.875; two 0.500" in said
    assert describe("resnet10t.embedded")["made"]["probes"] == CARD["probes"]


def test_it_is_small_enough_for_a_wheel(carried):
    assert carried.stat().st_size < 8e6


def test_the_tag_finds_the_file_for_its_network_alone(carried):
    assert find_weights("resnet10t", "embedded") == carried
    card = card_for("resnet10t", "embedded")
    assert fetch_weights(card) == carried
    assert (card.name, card.license, card.num_classes) == ("resnet10t.embedded", "Apache-2.0", 3)
    with pytest.raises(ConfigError, match=r"those of resnet10t\. Received: variant='resnet50'"):
        find_weights("resnet50", "embedded")


def test_what_cannot_be_downloaded_is_told_with_what_is_here(carried, unreachable, monkeypatch):
    with pytest.raises(ResourceError, match=r"small backbone .* `--weights embedded`"):
        find_weights("resnet18", "imagenet")
    monkeypatch.setattr(embedded, "is_there", lambda: False)
    with pytest.raises(ResourceError) as caught:
        find_weights("resnet18", "imagenet")
    assert "embedded" not in str(caught.value)


def test_an_installation_without_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "embedded.py"))
    assert not embedded.is_there()
    with pytest.raises(ResourceError, match=r"embedded_backbone\.py"):
        find_weights("resnet10t", "embedded")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", b"\x08\0\0\0\0\0\0\0[1,2,3] "]
)
def test_another_file_in_its_place_is_one_line(content, monkeypatch, tmp_path):
    file = tmp_path / "embedded.safetensors"
    file.write_bytes(content)
    monkeypatch.setattr(embedded, "path", lambda: file)
    with pytest.raises(ResourceError, match="Install kresnet again") as caught:
        card_for("resnet10t", "embedded")
    assert "\n" not in str(caught.value)


def planned(choice, **settings):
    return with_weights(choice, Console(), lambda c: decide(c, Console()))


def test_it_stands_in_loudly_where_nothing_can_be_downloaded(carried, unreachable, striped, capsys):
    plan, _ = planned(Choice(striped, None, "auto", "default", None, {}))
    assert (plan.recipe.variant, plan.recipe.weights) == ("resnet10t", "embedded")
    assert plan.recipe.image_size == 96
    said = capsys.readouterr().err
    assert "WARNING" in said
    assert "Network is unreachable" in said
    assert "resnet50.tv_in1k.pth" in said  # what to fetch for the better result
    assert "less accurate" in said


@pytest.mark.parametrize(
    ("variant", "weights"), [("resnet50", "auto"), (None, "imagenet"), ("resnet18", "auto")]
)
def test_what_was_asked_for_by_name_is_not_replaced(
    variant, weights, carried, unreachable, striped
):
    with pytest.raises(ResourceError, match="--weights embedded"):
        planned(Choice(striped, variant, weights, "default", None, {}))


def test_without_it_the_failed_download_is_the_error(unreachable, monkeypatch, striped):
    monkeypatch.setattr(embedded, "is_there", lambda: False)
    with pytest.raises(ResourceError, match="must be downloadable"):
        planned(Choice(striped, None, "auto", "default", None, {}))


def test_its_weights_choose_its_network_and_its_size(carried, unreachable, striped, capsys):
    plan, _ = planned(Choice(striped, None, "embedded", "default", None, {}))
    assert (plan.recipe.variant, plan.recipe.image_size) == ("resnet10t", 96)
    assert "WARNING" not in capsys.readouterr().err
    wider, _ = planned(Choice(striped, None, "embedded", "default", None, {"image_size": 160}))
    assert wider.recipe.image_size == 160


@pytest.mark.slow
def test_an_offline_machine_trains_from_a_folder_to_an_export(
    carried, unreachable, striped, tmp_path
):
    from kresnet.workflow import fit

    result = fit(striped, epochs=0, out=tmp_path / "runs", exports=tmp_path / "exports")
    assert (result.export / "saved_model.pb").is_file()
    recipe = (result.run / "recipe.yaml").read_text()
    assert "weights: embedded" in recipe
    assert "resnet10t.embedded" in (result.run / "report.html").read_text()


@pytest.mark.skipif(not embedded.is_there(), reason="this checkout carries no embedded backbone")
def test_what_the_package_carries_has_a_whole_card():
    file = embedded.path()
    assert file.stat().st_size <= 8e6
    card = embedded.read_card(file)
    assert {
        "from",
        "teacher",
        "minutes of processor time",
        "steps",
        "probes",
        "licence of the images",
    } <= set(card)
    assert json.dumps(card["probes"]) != "{}"
    model = build("resnet10t.embedded", input_shape=(64, 64))
    assert model.output_shape[-1] == len(card["classes"])
