"""The table of published weights, compared with what their publishers say."""

import csv
import re
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from importlib import resources

import pytest

from kresnet.errors import ConfigError
from kresnet.zoo.cards import (
    CAFFE,
    CARDS,
    CIFAR10,
    IMAGENET,
    Preprocessing,
    card_for,
    cards_of,
    split_name,
)
from kresnet.zoo.download import TAGS
from kresnet.zoo.variants import VARIANTS

SIZES = {"imagenet": 1000, "imagenet-12k": 11821, "imagenet-21k": 21843, "cifar10": 10}


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_complete(name):
    item = CARDS[name]
    assert name == item.name == f"{item.variant}.{item.tag}"
    assert item.variant in VARIANTS
    assert item.num_classes in SIZES.values()
    assert (item.num_classes == 10) == (VARIANTS[item.variant].num_classes == 10)
    for file in item.files:
        assert re.fullmatch(r"https://[a-z0-9.]+/[\w./-]+\.(pth|th|h5|safetensors)", file.url)
        assert re.fullmatch(r"(sha256:[0-9a-f]{8,64}|md5:[0-9a-f]{32}|)", file.checksum)
        assert file.checksum or file.url.startswith("https://huggingface.co/timm/")
        assert re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+\.[a-z0-9]+", file.name)
    in_name = re.search(r"-([0-9a-f]{8,})\.\w+$", item.url)
    if in_name:
        assert item.checksum.startswith(f"sha256:{in_name[1]}")
    assert item.license in (
        "Apache-2.0", "BSD-3-Clause", "BSD-2-Clause", "MIT", "CC-BY-NC-4.0", "unknown",
    )  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_numbers_are_plausible(name):
    item = CARDS[name]
    usual, test = item.preprocessing, item.test_preprocessing
    assert 32 <= usual.image_size <= test.image_size <= 512
    assert 0.8 < usual.crop_pct <= test.crop_pct <= 1.0
    assert usual.interpolation == test.interpolation
    assert (usual.mean, usual.std) == (test.mean, test.std)
    assert item.train_size is None or 0.7 <= item.train_size / usual.image_size <= 1.0
    assert (item.top1 is None) == (item.test_top1 is None) == (item.source == "")
    if item.top1 is not None:
        assert 65 < item.top1 <= item.test_top1 < 95
        assert item.top5 is None or max(item.top1, 80) < item.top5 <= item.test_top5 < 99
    elif item.num_classes == 1000:
        pytest.fail("weights with the classes of ImageNet have a published accuracy")


def test_the_table_is_sorted_without_repeats_and_nothing_is_left_unread():
    table = resources.files("kresnet.zoo").joinpath("cards.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    keys = [(row["variant"], row["tag"]) for row in rows]
    assert keys == sorted(set(keys))
    assert [f"{variant}.{tag}" for variant, tag in keys] == list(CARDS)
    assert all(None not in row and None not in row.values() for row in rows)
    read = {field.name for field in fields(CARDS["resnet50.a1_in1k"])}
    others = {
        "image_size", "crop_pct", "interpolation", "normalization", "test_size", "test_crop_pct",
        "hub",
    }  # fmt: skip
    assert set(rows[0]) == (read | others) - {"preprocessing", "test_preprocessing", "mirrors"}


def test_what_there_is():
    assert len(CARDS) >= 200
    kinds = Counter(item.tag.split("_")[0] for item in CARDS.values())
    for kind in ("tv", "tv2", "a1", "a2", "a3", "a1h", "ra2", "ra4", "gluon", "bt", "racm", "tf"):
        assert kinds[kind] >= 2, kind
    assert {"goog", "fb", "keras", "akamaster"} <= set(kinds)


def test_file_names_are_unique():
    names = [file.name for item in CARDS.values() for file in item.files]
    assert len(set(names)) == len(names)
    assert len({name.lower() for name in names}) == len(names)


def test_a_card_in_full():
    item = CARDS["resnet50.a1_in1k"]
    assert item.files == (
        (
            "resnet50.a1_in1k.pth",
            "https://github.com/rwightman/pytorch-image-models/releases/download/"
            "v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth",
            "sha256:14fe96d1",
        ),
        (
            "resnet50.a1_in1k.safetensors",
            "https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors",
            "",
        ),
    )
    assert (item.license, item.noncommercial, item.train_size) == ("Apache-2.0", False, 224)
    assert (item.top1, item.top5, item.test_top1, item.test_top5) == (80.382, 94.598, 81.24, 95.112)
    assert item.preprocessing == Preprocessing(
        image_size=224, crop_pct=0.95, interpolation="bicubic"
    )
    assert item.test_preprocessing == Preprocessing(
        image_size=288, crop_pct=1.0, interpolation="bicubic"
    )


def test_the_hidden_299_of_keras_v2():
    item = card_for("resnet101_v2", "imagenet")
    assert (item.tag, item.train_size, item.top1) == ("keras_in1k", 299, 77.234)
    assert item.preprocessing == Preprocessing(image_size=299, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert card_for("resnet101_v1", "imagenet").preprocessing == CAFFE


@pytest.mark.parametrize(
    ("variant", "alias", "tag"),
    [
        ("resnet50", "imagenet", "tv_in1k"),  # not tv2 or a1, which score better
        ("resnet152_v1", "imagenet", "keras_in1k"),
        ("resnet18d", "imagenet", "ra4_e3600_r224_in1k"),  # the best, since none is plain
        ("resnext101_32x4d", "imagenet", "gluon_in1k"),  # not the better non-commercial ones
        ("resnext101_32x32d", "imagenet", "fb_wsl_ig1b_ft_in1k"),  # there is no other
        ("res2net50d", "imagenet", "in1k"),
        ("resnetaa50d", "imagenet", "sw_in12k_ft_in1k"),  # not those of 11821 classes
        ("resnet56_cifar", "cifar10", "akamaster_cifar10"),
        ("resnet8_cifar", "cifar10", "mlperf_cifar10"),
    ],
)
def test_aliases(variant, alias, tag):
    assert card_for(variant, alias) is CARDS[f"{variant}.{tag}"]
    assert {alias, tag} <= TAGS


def test_the_order_of_choice():
    tags = [item.tag for item in cards_of("resnet50")]
    assert tags[:3] == ["tv_in1k", "tv2_in1k", "a1_in1k"]
    assert tags[-2:] == ["fb_swsl_ig1b_ft_in1k", "fb_ssl_yfcc100m_ft_in1k"]
    assert len(tags) == 18
    assert cards_of("resnet200") == ()


def test_names():
    assert split_name("resnet50.a1_in1k") == ("resnet50", "a1_in1k")
    assert split_name("resnet50") == ("resnet50", None)
    assert split_name("resnet50.") == ("resnet50", None)


def test_the_constants():
    assert CARDS["resnet20_cifar.akamaster_cifar10"].preprocessing == CIFAR10
    assert CARDS["resnet18.tv_in1k"].preprocessing == IMAGENET
    assert CARDS["resnet8_cifar.mlperf_cifar10"].preprocessing.mean == (0.0, 0.0, 0.0)


def test_noncommercial_licences():
    forbidden = [item for item in CARDS.values() if item.noncommercial]
    assert {item.license for item in forbidden} == {"CC-BY-NC-4.0"}
    assert {item.tag.split("_")[0] for item in forbidden} == {"fb"}
    assert len(forbidden) == 15


@pytest.mark.parametrize(
    ("variant", "tag", "fix"),
    [
        ("resnet20_cifar", "imagenet", "resnet20_cifar has 'akamaster_cifar10'."),
        ("resnet50", "imagnet", "Did you mean weights='imagenet'?"),
        ("resnet50", "a1_in1kk", "Did you mean weights='a1_in1k'?"),
        (
            "resnet50",
            "?",
            "resnet50 has 'tv_in1k', 'tv2_in1k', 'a1_in1k', 'd_in1k', 'c2_in1k', ....",
        ),
        ("resnet51", "imagenet", "Did you mean 'resnet50'? `kresnet zoo list` shows them all."),
        ("vgg", "imagenet", "weights='imagenet'. `kresnet zoo list` shows them all."),
    ],
)
def test_card_for_explains(variant, tag, fix):
    with pytest.raises(ConfigError, match=r"No such weights are published\. Received: ") as error:
        card_for(variant, tag)
    assert str(error.value).endswith(fix)
    assert f"variant={variant!r}, weights={tag!r}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "../../etc"}, "`variant` and `tag` of a card are made of a-z, 0-9 and _."),
        ({"variant": "a/b"}, "Received: variant='a/b', tag='tv_in1k'."),
        ({"variant": "."}, "Received: variant='.', tag='tv_in1k'."),
        ({"url": "https://host/passwd"}, "must end in one of .pth, .pt, .th, .safetensors"),
        ({"url": "https://host/a.pth/.."}, "Received: url='https://host/a.pth/..'."),
        ({"mirrors": ("https://host/a.exe",)}, "Received: url='https://host/a.exe'."),
    ],
)
def test_no_card_leads_out_of_the_cache(change, message):
    with pytest.raises(ConfigError) as error:
        replace(CARDS["resnet18.tv_in1k"], **change)
    assert message in str(error.value)


def test_cards_need_no_keras_and_are_read_when_asked_for():
    program = (
        "import sys, kresnet.zoo.cards as cards\n"
        "assert cards._cards.cache_info().currsize == 0\n"
        "assert cards.card_for('resnet50', 'imagenet').tag == 'tv_in1k'\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & {"keras", "tensorflow", "numpy", "torch"}


# --- the publishers' own words


@pytest.fixture(scope="module")
def timm_configs(torchvision_models):
    timm = pytest.importorskip("timm")
    if timm.__version__ != "1.0.31":
        pytest.skip("the cards are of timm 1.0.31")
    from timm.models import res2net, resnest, resnet, resnetv2, sknet

    return {
        f"{name}.{tag}": config
        for module in (resnet, resnetv2, resnest, res2net, sknet)
        for name, default in module.default_cfgs.items()
        for tag, config in default.cfgs.items()
    }


def test_all_of_timm_is_there(timm_configs):
    missing = {
        name
        for name, config in timm_configs.items()
        if split_name(name)[0] in VARIANTS and config.has_weights and name not in CARDS
    }
    assert missing == {"resnet50.bamboo"}  # has no head


def test_cards_agree_with_timm(timm_configs):
    compared = 0
    for name, item in CARDS.items():
        config = timm_configs.get(name)
        if config is None:
            assert item.tag in ("keras_in1k", "akamaster_cifar10", "mlperf_cifar10")
            continue
        compared += 1
        assert item.url == config.url or not config.url
        assert item.files[-1].url.startswith(f"https://huggingface.co/{config.hf_hub_id}{name}/")
        assert item.license.lower() == config.license
        assert item.num_classes == config.num_classes
        test = item.test_preprocessing
        assert (test.mean, test.std) == (config.mean, config.std)
        assert test.interpolation == config.interpolation
        assert test.image_size == (config.test_input_size or config.input_size)[1]
        larger = config.test_input_size and config.test_crop_pct
        assert test.crop_pct == (config.test_crop_pct if larger else config.crop_pct) or (
            name == "resnext101_64x4d.tv_in1k" and test.crop_pct == 0.965  # torchvision's
        )
        if not item.tag.startswith("tv"):
            assert item.preprocessing.image_size == config.input_size[1]
            assert item.preprocessing.crop_pct == config.crop_pct
    assert compared == len(CARDS) - 13


def test_cards_agree_with_torchvision(torchvision_models):
    tags = {"IMAGENET1K_V1": "tv_in1k", "IMAGENET1K_V2": "tv2_in1k"}
    compared = 0
    for variant in torchvision_models.list_models():
        if variant not in VARIANTS:
            continue
        for weights in torchvision_models.get_model_weights(variant):
            item = CARDS[f"{variant}.{tags[weights.name]}"]
            compared += 1
            assert item.url == weights.url
            scores = weights.meta["_metrics"]["ImageNet-1K"]
            assert (item.top1, item.top5) == (scores["acc@1"], scores["acc@5"])
            transform, usual = weights.transforms(), item.preprocessing
            assert [usual.image_size] == transform.crop_size
            assert [int(usual.image_size / usual.crop_pct)] == transform.resize_size
            assert usual.interpolation == transform.interpolation.value
            assert transform.antialias
            assert [*usual.mean, *usual.std] == [*transform.mean, *transform.std]
    assert compared == sum(item.tag in tags.values() for item in CARDS.values()) == 17


def test_cards_agree_with_keras_applications():
    from keras.src.applications import resnet

    for depth in (50, 101, 152):
        for ours, theirs in (("_v1", ""), ("_v2", "v2")):
            item = CARDS[f"resnet{depth}{ours}.keras_in1k"]
            name = f"resnet{depth}{theirs}"
            assert item.checksum == f"md5:{resnet.WEIGHTS_HASHES[name][0]}"
            assert item.url == (
                f"{resnet.BASE_WEIGHTS_PATH}{name}_weights_tf_dim_ordering_tf_kernels.h5"
            )
