"""Fine-tune an ImageNet ResNet-50 on a folder of images.

    python recipes/finetune_folder.py FOLDER [--weights PATH --variant NAME] [--epochs N]

FOLDER holds one folder of images for each class, or such folders under train, val and test.

A linear probe on frozen features comes first, then fine-tuning with frozen norm statistics and
layer-wise learning rates; whichever validates better is exported. Open settings are planned from
the number of images, as `kresnet train` does; set any field of `kresnet.Recipe` below to fix it.

Machine: two cores of an Intel Xeon without AMX, float32, kept busy by other work; for the ResNet-50
    two with AMX, bfloat16, shared with other work.
Time: 1:09 to 1:37 for 600 photos of five flowers with the embedded backbone (`--variant resnet10t
    --weights embedded`); with a ResNet-50 3:29, and 3:33 for 397 of ants and bees.
Result: 76.3 % (72.2 to 81.1 over three seeds) of 90 test photos of flowers with the embedded
    backbone. With a ResNet-50 and one seed 87.8 % (95 % interval 79.4 to 93.0) of them, and 97.4 %
    (93.5 to 99.0) of 153 validation photos of ants and bees; README.md has three seeds of it under
    "Beside others".
Source: Kumar et al. 2022, arXiv:2202.10054, for the probe before the fine-tuning;
    the rest is said with each setting by `kresnet train FOLDER --dry-run`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import kresnet


def main(
    folder: str, variant: str, weights: str, epochs: int | None, seed: int = 0
) -> kresnet.Result:
    """Train, evaluate and export."""
    settings: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    result = kresnet.fit(folder, variant=variant, weights=weights, seed=seed, **settings)
    print(result.test or result.validation)
    print(result.export)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--variant", default="resnet50")
    parser.add_argument("--weights", default="imagenet", help="a tag, or a checkpoint's path")
    parser.add_argument("--epochs", type=int, help="as many as the plan says, if not given")
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(**vars(parser.parse_args()))
    except kresnet.KresnetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
