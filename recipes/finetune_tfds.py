"""Fine-tune an ImageNet ResNet-50 on any image classification data set of TFDS.

    python recipes/finetune_tfds.py NAME[:CONFIG][@SPLITS] [--weights PATH --variant NAME]

NAME is as in the catalogue, https://www.tensorflow.org/datasets/catalog/overview: oxford_iiit_pet,
eurosat:rgb, or beans@train+validation+test. Without SPLITS, `train` is learned from, `validation`
chooses the epoch and `test` is scored once; what is missing is taken from `train`. The data set is
looked for in TFDS_DATA_DIR, or downloaded by TFDS: `pip install 'kresnet[tfds]'`.

The images are read at their place in TFDS's files, with the same decoder and the same views as
those of a folder, and nothing is written beside them.

Machine: two cores of an Intel Xeon without AMX, float32.
Time: 1:45 for 600 photos with the embedded backbone (`--variant resnet10t --weights embedded`).
Result: 77.0 % (71.1 to 82.2 over three seeds) of 90 test photos of five flowers, 600 of tf_flowers
    that `kresnet data pack` wrote to TFDS_DATA_DIR/five_flowers/1.0.0: TFDS's own are downloaded,
    and the machine at hand reaches none of them.
Source: the settings are those that `kresnet train` plans from the number of images.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import kresnet


def main(
    name: str, variant: str, weights: str, epochs: int | None, seed: int = 0
) -> kresnet.Result:
    """Train, evaluate and export."""
    settings: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    result = kresnet.fit(f"tfds:{name}", variant=variant, weights=weights, seed=seed, **settings)
    print(result.test or result.validation)
    print(result.export)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--variant", default="resnet50")
    parser.add_argument("--weights", default="imagenet", help="a tag, or a checkpoint's path")
    parser.add_argument("--epochs", type=int, help="as many as the plan says, if not given")
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(**vars(parser.parse_args()))
    except kresnet.KresnetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
