"""Any network that a ResNetConfig can say is built, and is the size it is counted to be."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kresnet.zoo import ResNetConfig, build, features, measure
from kresnet.zoo.graph import KerasLayers
from kresnet.zoo.size import SizeLayers


@st.composite
def configs(draw):
    block = draw(st.sampled_from(["basic", "bottleneck"]))
    stem = draw(st.sampled_from(["conv7", "deep", "conv3"]))
    bottleneck = block == "bottleneck"
    middle = draw(
        st.sampled_from(["conv", "sk", "split", "res2"] if bottleneck else ["conv", "sk"])
    )
    preact = middle == "conv" and draw(st.booleans())
    return ResNetConfig(
        block=block,
        depths=tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))),
        width=32,
        groups=draw(st.sampled_from([1, 2])) if bottleneck and not preact else 1,
        middle=middle,
        splits=draw(st.sampled_from([2, 4])) if middle in ("split", "res2") else 1,
        pool_first=draw(st.booleans()),
        attention=None if preact else draw(st.sampled_from([None, "se", "eca", "cbam"])),
        stem=stem,
        stem_filters=(32, 32, 64) if stem == "deep" else (32,),
        stem_norm=draw(st.booleans()),
        stem_pool=draw(st.sampled_from(["max", "conv"])),
        pool_padding=draw(st.sampled_from(["infinity", "zero"])),
        stride_in=draw(st.sampled_from(["conv1", "conv2"])) if middle == "conv" else "conv2",
        shortcut=draw(st.sampled_from(["conv", "conv3", "avgconv"])),
        project_first=draw(st.booleans()),
        preact=preact,
        norm=draw(st.sampled_from(["batch", "group"])),
        standardize=draw(st.sampled_from([None, 1e-6])),
        use_bias=draw(st.booleans()),
        antialias=draw(st.sampled_from([None, "avg", "blur"])),
        num_classes=7,
        image_size=64,
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs(), st.integers(33, 70))
def test_any_network_is_built_at_its_counted_size(config, side):
    if config.norm == "group" and config.attention == "cbam":
        return  # its map of places has one channel, which are no 32 groups
    if config.norm == "group" and config.middle != "conv":
        return  # nor have narrow parts
    model = build(config)
    params = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert measure(config).params == params
    x = np.random.default_rng(side).normal(size=(1, side, side + 5, 3)).astype("float32")
    logits = np.asarray(model(x, training=False))
    assert logits.shape == (1, 7)
    assert np.isfinite(logits).all()
    stride = (1 if config.stem == "conv3" else 4) * 2 ** (len(config.depths) - 1)
    last = features(model, (stride,))(x)
    assert last.shape[-1] == config.num_features


def test_what_is_built_and_what_is_counted_have_the_same_parts():
    built = {name for name in vars(KerasLayers) if not name.startswith("_")}
    counted = {name for name in vars(SizeLayers) if not name.startswith("_")}
    assert built - counted == {
        "dtype",
        "activation",
        "kernel_regularizer",
        "zero_init_residual",
        "config",
    }
    assert counted <= built
