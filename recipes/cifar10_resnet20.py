"""Train ResNet-20 on CIFAR-10 from scratch, as He et al. 2015 did (arXiv:1512.03385, sec. 4.2).

    python recipes/cifar10_resnet20.py FOLDER [--epochs N] [--seed N]

FOLDER holds the images as files: train/<class>/*.png and test/<class>/*.png. The paper's 64,000
steps of 128 images are 182 epochs of the 45,000 images that are left to train on.

From the paper: SGD with momentum 0.9, weight decay 1e-4, batch 128, learning rate 0.1, 45,000
images to train and 5,000 to validate, no dropout, option A shortcuts. Ours: a cosine instead of
two steps of the learning rate, Nesterov momentum, random crops by resampling instead of by
padding, and per-channel instead of per-pixel means.

Machine: two cores of an Intel Xeon without AMX, float32, kept busy by other work.
Time: about 3:30 of the processors for 40 epochs of 750 images. 182 epochs of 45,000 are 8 million
    images: hours on two cores, minutes on a GPU; not measured.
Result: 35.1 % (28.7 to 40.7 over three seeds) of 150 images, after 40 epochs of 750: 1,000
    images of CIFAR-10 are all that is at hand. The paper has 91.25 % with all of them.
Source: He et al. 2015, arXiv:1512.03385, section 4.2 and table 6.
"""

from __future__ import annotations

import argparse
import sys

import kresnet


def main(folder: str, epochs: int = 182, seed: int = 0) -> kresnet.Result:
    """Train, evaluate and export."""
    result = kresnet.fit(
        folder,
        variant="resnet20_cifar",
        weights=None,
        val=0.1,
        epochs=epochs,
        optimizer="sgd",
        lr=0.1,
        batch_size=128,
        weight_decay=1e-4,
        layer_decay=1.0,
        clip_norm=None,
        warmup=0.02,
        min_area=0.6,
        flip=True,
        seed=seed,
    )
    print(result.test or result.validation)
    print(result.export)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=182)
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(**vars(parser.parse_args()))
    except kresnet.KresnetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
