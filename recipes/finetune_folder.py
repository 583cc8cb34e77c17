"""Fine-tune an ImageNet ResNet-50 on a folder of images.

    python recipes/finetune_folder.py FOLDER [WEIGHTS [VARIANT]]

FOLDER holds one folder of images for each class, or such folders under train, val and test.
WEIGHTS is "imagenet", which downloads once, or the path of a checkpoint of VARIANT.

A linear probe on frozen features comes first, then fine-tuning with frozen norm statistics and
layer-wise learning rates; whichever validates better is exported. Open settings are planned from
the number of images, as `kresnet train` does; set any field of `kresnet.Recipe` below to fix it.

Measured: see "Results" in README.md.
"""

from __future__ import annotations

import sys

import kresnet


def main(folder: str, weights: str = "imagenet", variant: str = "resnet50") -> kresnet.Result:
    """Train, evaluate and export."""
    result = kresnet.fit(folder, variant=variant, weights=weights, seed=0)
    print(result.test or result.validation)
    print(result.export)
    return result


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except kresnet.KresnetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
