"""Train the backbone that kresnet carries, and write it as int8.

    python recipes/embedded_backbone.py FOLDER [FOLDER ...] --teacher NPZ --work FOLDER
        [--minutes 150] [--leave-out FOLDER ...] [--judge FOLDER ...] [--out FILE]

A FOLDER has a folder of images for each class, as tiny-imagenet-200/train and imagenette/train;
classes of the same name in two of them are one. What is nearly an image of --leave-out is left
out, as our duplicate finder tells, so that what it will be measured on stays unseen.

A ResNet-10-T learns three things at once: the class; and, for the images that the teacher was
shown in a quarter of the time, its features of the image up to a linear map that is thrown away
(Romero et al. 2014, arXiv:1412.6550) and its probabilities (Hinton et al. 2015, arXiv:1503.02531).
The teacher is a ResNet-50 in the layout of keras.applications. --minutes are of processor time,
all cores together, so that a pause or a busy machine takes nothing from the result; the rate
follows them. State is in --work: the same command goes on where it was killed, and one that ended
trains no more.

Ours: AdamW, peak rate 2e-3, weight decay .05, one cycle; 128 images a step, of 48 px and in the
last third of 64 px; crops from 35 %, mirrored, labels smoothed by .1; float32 or bfloat16,
whichever the machine has.

Machine: two cores of an Intel Xeon without AMX, float32, shared with other work.
Time: about 150 minutes of processor time, 7,428 steps: at first with --minutes 60 and a teacher
    that was shown 37,504 images; after it was shown all 113,337, gone on with by --minutes 150.
Result: a linear probe on it is right on 75.9 % (70.0 to 78.9 over three seeds) of 90 test photos of
    flowers, and on 81.0 % of 153 photos of ants and bees (each seed).
Source: kresnet's own; of the parts, the papers above.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kresnet
from kresnet.data.duplicates import find
from kresnet.data.examine import Facts
from kresnet.data.items import is_named_image
from kresnet.data.look import look
from kresnet.data.pixels import center_box, decode, normalize, resample
from kresnet.files import whole_file
from kresnet.train.hardware import policy_name, resolve_precision
from kresnet.train.run import environment
from kresnet.train.schedule import one_cycle
from kresnet.zoo import Preprocessing, fold
from kresnet.zoo.embedded import VARIANT, write_embedded

SIDE = 64  # px of what is kept of an image, and of what the student sees in the end
SMALL = 48  # px of what it sees before
GROWN = 0.67  # share of the training after which it sees all
TEACHER_SIDE = 96  # px; the images are enlarged
TEACHER_SHARE = 0.25  # of the minutes
BATCH = 128
PEAK = 2e-3
SMOOTHING = 0.1
SIZES = (64, 96, 128, 160)  # px, of which the judge chooses
SAVE_S = 60.0
SEED = 0
TERMS = "ImageNet's: research and education, no commercial use; the photos are their owners'"
SEEN = Preprocessing(image_size=SIDE, crop_pct=1.0)


class Images(NamedTuple):
    """Images in memory.

    Attributes:
        pixels: uint8 `(n, SIDE, SIDE, 3)`.
        labels: int32 `(n,)`.
        classes: Their names.
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: list[str]


def gather(folders: Sequence[Path], leave_out: Sequence[Path], work: Path) -> Images:
    """Read all images once, in an order drawn at random; keep the result in `work`."""
    kept = work / "images.npz"
    if not kept.exists():
        files = [(f, folder) for folder in folders for f in files_below(folder)]
        names = [file.relative_to(folder).parts[0] for file, folder in files]
        classes = sorted(set(names))
        pixels = read([file for file, _ in files])
        unseen = np.ones(len(files), bool)
        unseen[near(pixels, read([f for folder in leave_out for f in files_below(folder)]))] = False
        print(f"{unseen.sum()} images, {(~unseen).sum()} left out, {len(classes)} classes")
        order = np.random.default_rng(SEED).permutation(np.flatnonzero(unseen))
        labels = np.array([classes.index(name) for name in names], np.int32)
        with whole_file(kept) as partial, partial.open("wb") as file:
            np.savez(file, pixels=pixels[order], labels=labels[order], classes=classes)
    with np.load(kept) as arrays:
        return Images(arrays["pixels"], arrays["labels"], arrays["classes"].tolist())


def files_below(folder: Path) -> list[Path]:
    """Return the image files below a folder, in the order of their names."""
    found = sorted(p for p in folder.rglob("*") if is_named_image(p) and p.is_file())
    if not found:
        raise kresnet.DataError(
            f"A folder must hold images. Received: {folder}, with none. Give the folder of classes."
        )
    return found


def read(files: Sequence[Path]) -> np.ndarray:
    """Return the centred squares of images, uint8 `(n, SIDE, SIDE, 3)`."""

    def load(path: tf.Tensor) -> tf.Tensor:
        image = decode(tf.io.read_file(path))
        box = center_box(tf.shape(image)[0], tf.shape(image)[1], 1.0)
        return tf.cast(tf.round(resample(image, box, SIDE, "bilinear")), tf.uint8)

    found = np.zeros((len(files), SIDE, SIDE, 3), np.uint8)
    paths = tf.data.Dataset.from_tensor_slices(tf.constant([str(f) for f in files], tf.string))
    for k, batch in enumerate(paths.map(load, tf.data.AUTOTUNE).batch(1000)):
        found[1000 * k : 1000 * k + len(batch)] = batch
    return found


def near(pixels: np.ndarray, others: np.ndarray) -> list[int]:
    """Return the images that are nearly one of the others, by position."""
    step, alike = 2000, set()
    theirs = [Facts(SIDE, SIDE, f"other {k}", look=look(p)) for k, p in enumerate(others)]
    for start in range(0, len(pixels) if theirs else 0, step):
        ours = [
            Facts(SIDE, SIDE, f"{start + k}", look=look(p))
            for k, p in enumerate(pixels[start : start + step])
        ]
        alike |= {
            start + pair.second - len(theirs)
            for pair in find([*theirs, *ours])
            if pair.first < len(theirs) <= pair.second
        }
    return sorted(alike)


class Lessons(NamedTuple):
    """What the teacher says of the first images.

    Attributes:
        features: float16 `(n, 2048)`, of length one.
        probabilities: float16 `(n, 1000)`.
    """

    features: np.ndarray
    probabilities: np.ndarray


def teach(images: Images, weights: Path, seconds: float, work: Path) -> Lessons:
    """Show the teacher as many images as the time allows; keep what it says in `work`."""
    kept = work / "lessons.npz"
    if not kept.exists():
        model = kresnet.build(
            "resnet50_v1", input_shape=(TEACHER_SIDE, TEACHER_SIDE), weights=weights
        )
        both = keras.Model(model.inputs, [model.get_layer("pool").output, model.output])
        precision = "bfloat16" if resolve_precision("auto") == "bfloat16" else "float32"
        run = tf.function(fold(both, dtype=precision))
        started = time.process_time()
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(images.pixels), BATCH):
            if parts and time.process_time() - started > seconds:
                break
            small = tf.cast(images.pixels[start : start + BATCH], tf.float32)
            shown = tf.image.resize(small, (TEACHER_SIDE, TEACHER_SIDE))
            features, logits = run(normalize(shown, model.preprocessing))
            features = tf.math.l2_normalize(tf.sqrt(tf.nn.relu(features)), -1)
            said = tf.nn.softmax(logits)
            parts.append((features.numpy().astype("float16"), said.numpy().astype("float16")))
        print(f"{sum(len(p[0]) for p in parts)} images taught", flush=True)
        features, probabilities = (np.concatenate(same) for same in zip(*parts, strict=True))
        with whole_file(kept) as partial, partial.open("wb") as file:
            np.savez(file, features=features, probabilities=probabilities)
    with np.load(kept) as arrays:
        return Lessons(arrays["features"], arrays["probabilities"])


class Student:
    """The network, what is thrown away, the optimizer, and how far they are.

    Args:
        classes: Outputs of the head.
        lessons: Lengths of the teacher's features and probabilities.
        work: Where the state is.
    """

    def __init__(self, classes: int, lessons: tuple[int, int], work: Path) -> None:
        keras.utils.set_random_seed(SEED)
        self.model = kresnet.build(
            VARIANT,
            num_classes=classes,
            input_shape=(None, None),
            dtype=policy_name(resolve_precision("auto")),
        )
        pool = self.model.get_layer("pool").output
        thrown = [keras.layers.Dense(n, dtype="float32", name=f"thrown{n}")(pool) for n in lessons]
        self.whole = keras.Model(self.model.inputs, [self.model.output, *thrown])
        self.optimizer = keras.optimizers.AdamW(PEAK, weight_decay=0.05, global_clipnorm=1.0)
        self.optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        self.optimizer.build(self.whole.trainable_variables)
        self.steps, self.seconds = 0, 0.0
        self._state = work / "state.npz"
        if self._state.exists():
            with np.load(self._state) as arrays:
                for k, variable in enumerate(self._variables):
                    variable.assign(arrays[f"v{k}"])
                self.steps, self.seconds = int(arrays["steps"]), float(arrays["seconds"])
        self.step = tf.function(self._step, reduce_retracing=False)

    @property
    def _variables(self) -> list[Any]:
        return [*self.whole.weights, *self.optimizer.variables]

    def save(self) -> None:
        """Write the state, whole or not at all."""
        arrays: dict[str, Any] = {f"v{k}": np.asarray(v) for k, v in enumerate(self._variables)}
        arrays |= {"steps": self.steps, "seconds": self.seconds}
        with whole_file(self._state) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def _step(
        self,
        side: int,
        pixels: Any,
        boxes: Any,
        targets: Any,
        features: Any,
        probabilities: Any,
        taught: Any,
    ) -> tf.Tensor:
        """Learn from a batch; `taught` is 1 where there is a lesson, and 0 elsewhere."""
        shown = tf.image.crop_and_resize(
            tf.cast(pixels, tf.float32), boxes, tf.range(len(pixels)), (side, side)
        )
        with tf.GradientTape() as tape:
            logits, like, said = self.whole(normalize(shown, SEEN), training=True)
            angle = 1.0 - tf.reduce_sum(tf.math.l2_normalize(like, -1) * features, -1)
            lesson = 4.0 * angle + tf.nn.softmax_cross_entropy_with_logits(probabilities, said)
            label = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(label + taught * lesson)
        variables = self.whole.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return loss


def batches(images: Images, lessons: Lessons, first: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield batches from a number on: half of the taught images, half of all of them."""
    number, taught = first, len(lessons.features)
    while True:
        rng = np.random.default_rng((SEED, number))
        few = rng.integers(0, taught, BATCH // 2)
        chosen = np.concatenate([few, rng.integers(0, len(images.labels), BATCH - len(few))])
        has_lesson = chosen < taught
        lesson = np.where(has_lesson, chosen, 0)
        targets = np.full((BATCH, len(images.classes)), SMOOTHING / len(images.classes), "float32")
        targets[np.arange(BATCH), images.labels[chosen]] += 1.0 - SMOOTHING
        yield (
            images.pixels[chosen],
            boxes(rng),
            targets,
            lessons.features[lesson].astype("float32"),
            lessons.probabilities[lesson].astype("float32"),
            has_lesson.astype("float32"),
        )
        number += 1


def boxes(rng: np.random.Generator) -> np.ndarray:
    """Draw crops of 35 to 100 % of the area, 3:4 to 4:3, half of them mirrored, `(BATCH, 4)`."""
    area, ratio = rng.uniform(0.35, 1.0, BATCH), np.exp(rng.uniform(-0.288, 0.288, BATCH))
    sides = np.minimum(np.sqrt(area[:, None] * np.stack([ratio, 1 / ratio], 1)), 1.0)
    start = rng.uniform(size=(BATCH, 2)) * (1.0 - sides)
    drawn = np.concatenate([start, start + sides], 1)  # top, left, bottom, right
    mirrored = rng.random(BATCH) < 0.5
    drawn[mirrored] = drawn[mirrored][:, [0, 3, 2, 1]]
    return drawn.astype("float32")


def train(student: Student, images: Images, lessons: Lessons, seconds: float) -> None:
    """Train until the time is spent, telling how it goes and saving the state now and then."""
    saved, losses = student.seconds, []
    for batch in batches(images, lessons, student.steps):
        if student.seconds >= seconds:
            break
        started, done = time.process_time(), student.seconds / seconds
        student.optimizer.learning_rate = PEAK * one_cycle(done, warmup=0.15)
        side = SMALL if done < GROWN else SIDE
        losses.append(float(student.step(side, *map(tf.constant, batch))))
        student.steps += 1
        student.seconds += time.process_time() - started
        if student.seconds - saved > SAVE_S:
            student.save()
            print(
                f"{student.seconds / 60:.1f} min, {student.steps} steps, loss "
                f"{np.mean(losses):.3f}, {BATCH * len(losses) / (student.seconds - saved):.0f} "
                "images a second of processor time",
                flush=True,
            )
            saved, losses = student.seconds, []
    student.save()


def judge(
    model: keras.Model, folder: Path, sizes: Sequence[int] = SIZES
) -> dict[int, dict[str, float]]:
    """Return how our probe does on the validation images of a folder, by their side."""
    from kresnet.data.prepare import prepare
    from kresnet.train.probe import Frozen, View, fit_head

    index = prepare(folder, seed=SEED, test=0.0)
    found = {}
    for size in sizes:
        seen = Preprocessing(image_size=size)
        frozen = Frozen(model, precision=resolve_precision("auto"))
        x, y = frozen.features_of(index.select("train"), seen, View())
        kernel, bias = fit_head(x, y, seed=SEED)
        x, y = frozen.features_of(index.select("val"), seen, View())
        right = float(np.mean(np.argmax(x @ kernel + bias, -1) == y))
        found[size] = {"accuracy": round(right, 4), "n": len(y)}
    return found


def main() -> None:
    """Do all of it, as far as it is not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="images to learn from")
    parser.add_argument("--teacher", type=Path, required=True, help="weights of resnet50_v1")
    parser.add_argument("--work", type=Path, required=True, help="where the state is")
    parser.add_argument("--minutes", type=float, default=150.0, help="of processor time")
    parser.add_argument("--leave-out", nargs="*", type=Path, default=[], help="images not to see")
    parser.add_argument("--judge", nargs="*", type=Path, default=[], help="images to probe on")
    parser.add_argument("--out", type=Path, help="the file; else WORK/embedded.safetensors")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    images = gather(options.folders, options.leave_out, options.work)
    seconds = 60 * options.minutes
    lessons = teach(images, options.teacher, TEACHER_SHARE * seconds, options.work)
    shape = (lessons.features.shape[1], lessons.probabilities.shape[1])
    student = Student(len(images.classes), shape, options.work)
    train(student, images, lessons, (1 - TEACHER_SHARE) * seconds)
    probes = {folder.name: judge(student.model, folder) for folder in options.judge}
    size = best_size(probes.values())
    card = {
        "images": len(images.labels),
        "classes": images.classes,
        "from": [str(Path(*folder.parts[-2:])) for folder in options.folders],
        "licence": "Apache-2.0",
        "licence of the images": TERMS,
        "taught": len(lessons.features),
        "teacher": options.teacher.name,
        "minutes of processor time": options.minutes,
        "steps": student.steps,
        "batch": BATCH,
        "train_size": SIDE,
        "probes": probes,
        "environment": {k: v for k, v in environment().items() if k != "command"},
    }
    out = options.out or options.work / "embedded.safetensors"
    write_embedded(student.model, out, image_size=size, card=card)
    whole = kresnet.build(VARIANT, num_classes=len(images.classes), weights=out)
    card["probes as int8"] = {f.name: judge(whole, f, [size]) for f in options.judge}
    write_embedded(student.model, out, image_size=size, card=card)
    told = {topic: card[topic] for topic in ("probes", "probes as int8", "steps")}
    print(json.dumps(told | {"image_size": size, "bytes": out.stat().st_size}, indent=1))


def best_size(probes: Collection[dict[int, dict[str, float]]]) -> int:
    """Return the side at which probes do best on the whole, the smaller one of equals."""
    if not probes:
        return SIDE
    return max(SIZES, key=lambda size: (sum(p[size]["accuracy"] for p in probes), -size))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main()
    except kresnet.KresnetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
