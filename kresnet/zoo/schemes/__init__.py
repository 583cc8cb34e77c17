"""How other libraries name a ResNet's weights: one module a naming scheme.

Nothing is loaded by order: it differs between Keras versions while shapes coincide
(tensorflow#33459).
"""

from __future__ import annotations

from kresnet.errors import WeightsError
from kresnet.zoo.schemes.bit import BIT
from kresnet.zoo.schemes.keras_applications import KERAS_APPLICATIONS, KERAS_APPLICATIONS_V2
from kresnet.zoo.schemes.kresnet import KRESNET
from kresnet.zoo.schemes.mlperf import MLPERF
from kresnet.zoo.schemes.qubvel import QUBVEL
from kresnet.zoo.schemes.resnet_rs import RESNET_RS
from kresnet.zoo.schemes.source import Arrays, Scheme
from kresnet.zoo.schemes.torch import TORCH, TORCH_FOLDED

# The first that recognises the names is taken. KerasHub's is not among them: it needs the preset's
# configuration (`kerashub.read_preset`).
SCHEMES: tuple[Scheme, ...] = (
    KRESNET,
    KERAS_APPLICATIONS_V2,
    KERAS_APPLICATIONS,
    TORCH,
    TORCH_FOLDED,
    BIT,
    QUBVEL,
    RESNET_RS,
    MLPERF,
)


def scheme_of(arrays: Arrays, source: str) -> Scheme:
    """Tell the naming scheme from the names.

    Args:
        arrays: A checkpoint's arrays by name.
        source: The file they are from, for the error.

    Raises:
        WeightsError: The names are those of no scheme; the message shows some.
    """
    for scheme in SCHEMES:
        if scheme.recognises(arrays):
            return scheme
    examples = ", ".join(repr(key) for key in sorted(arrays)[:5]) or "none"
    raise WeightsError(
        "The checkpoint must name its arrays as torchvision or timm ('conv1.weight', "
        "'stem.conv.weight'), keras.applications ('conv1_conv/kernel'), BiT, qubvel, ResNet-RS, "
        "MLPerf Tiny or kresnet ('stem_conv/kernel') do. "
        f"Received: source={source!r}, with {len(arrays)} names: {examples}. "
        "Rename its arrays and pass them as a mapping."
    )
