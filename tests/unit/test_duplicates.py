"""Duplicates are found whatever was done to them, and only they."""

from dataclasses import replace

import numpy as np
import pytest
from hostile import encode, picture
from PIL import Image

from kresnet.bench.check import CHANGES
from kresnet.data.check import check
from kresnet.data.duplicates import Pair, find, groups
from kresnet.data.examine import Facts
from kresnet.data.look import SIDE, area_weights, look, thumbnails


def facts(image, digest):
    pixels = np.asarray(image.convert("RGB"))
    return Facts(*pixels.shape[:2], digest, "", look(pixels))


def photo(seed):
    """A picture with coarse and fine structure, as photos have, but no two alike."""
    rng = np.random.default_rng(seed)
    total = np.zeros((150, 200, 3))
    for size in (3, 6, 12, 24, 48):
        noise = rng.normal(size=(size, size, 3)).astype("float32")
        channels = [
            np.asarray(Image.fromarray(noise[..., k]).resize((200, 150), Image.Resampling.BICUBIC))
            for k in range(3)
        ]
        total += np.stack(channels, -1) * 90 / size**0.8
    return Image.fromarray(np.clip(128 + total, 0, 255).astype("uint8"))


@pytest.fixture(scope="module")
def photos():
    return [photo(seed) for seed in range(60)]


def test_same_file_same_pixels_and_neither(photos):
    rows = [facts(image, str(k)) for k, image in enumerate(photos[:4])]
    rows += [replace(rows[2]), replace(rows[1], digest="b"), replace(rows[2]), rows[0]]
    assert find(rows) == (
        Pair(0, 7, "same file"),
        Pair(1, 5, "same pixels"),
        Pair(2, 4, "same file"),
        Pair(2, 6, "same file"),
    )
    altered = np.array(photos[0])
    altered[70, 90, 1] ^= 128  # of 30,000 pixels one
    assert find([rows[0], facts(Image.fromarray(altered), "x")]) == (Pair(0, 1, "near"),)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(photos, change):
    count = len(photos)
    rows = [facts(image, f"a{k}") for k, image in enumerate(photos)]
    rows += [facts(CHANGES[change](image), f"b{k}") for k, image in enumerate(photos)]
    pairs = find(rows)
    assert {pair.kind for pair in pairs} == {"near"}
    true = {(k, count + k) for k in range(count)}
    found = {(pair.first, pair.second) for pair in pairs}
    assert len(found & true) >= 0.95 * count
    assert found <= true


def test_order_is_of_no_account(photos):
    rows = [facts(image, str(k)) for k, image in enumerate(photos[:20])]
    rows += [facts(CHANGES["cropped 5 % at each side"](photos[k]), f"c{k}") for k in range(20)]
    order = np.random.default_rng(5).permutation(len(rows))
    turned = [rows[k] for k in order]
    found = {frozenset((rows[p.first].digest, rows[p.second].digest)) for p in find(rows)}
    other = {frozenset((turned[p.first].digest, turned[p.second].digest)) for p in find(turned)}
    assert len(found) >= 19
    assert len(found ^ other) <= 1


def test_images_that_say_too_little_have_no_near_duplicates():
    rng = np.random.default_rng(0)
    rows = []
    for k in range(6):
        flat = np.full((90, 90, 3), 200, np.uint8) - rng.integers(0, 3, (90, 90, 3), np.uint8)
        small = picture(7, 20, 31).point(lambda level, k=k: level - k)
        rows += [facts(Image.fromarray(flat), f"f{k}"), facts(small, f"s{k}")]
    assert find(rows) == ()
    assert find([Facts(50, 50, "a"), Facts(50, 50, "b"), Facts(50, 50, "a")]) == (
        Pair(0, 2, "same file"),
    )
    assert find([]) == ()


def test_a_film_takes_no_quadratic_time_and_is_one_group(photos, monkeypatch):
    from kresnet.data import duplicates

    compared = []
    correlation = duplicates._correlation
    monkeypatch.setattr(
        duplicates,
        "_correlation",
        lambda one, *rest: compared.append(len(one)) or correlation(one, *rest),
    )
    count = 400
    start = np.asarray(photos[0]).astype(int)
    frames = [
        Image.fromarray(np.clip(start + k % 40, 0, 255).astype("uint8")) for k in range(count)
    ]
    pairs = find([facts(frame, str(k)) for k, frame in enumerate(frames)])
    assert set(groups(count, pairs)) == {0}
    assert sum(compared) <= 64 * count


def test_blocks_and_threads_lose_no_pair_of_the_exhaustive_search(photos, monkeypatch):
    """Copies among other pictures, shuffled: the same as each pair finds when it is asked alone."""
    rng = np.random.default_rng(3)
    rows = [facts(image, f"a{k}") for k, image in enumerate(photos[:10])]
    changes = list(CHANGES.values())
    rows += [facts(changes[rng.integers(len(changes))](photos[k]), f"b{k}") for k in range(7)]
    rows += [Facts(99, 99, f"c{k}", "", rng.bytes(4 + SIDE * SIDE)) for k in range(4)]
    rng.shuffle(rows)
    alone = {(i, j) for j in range(len(rows)) for i in range(j) if find([rows[i], rows[j]])}
    assert len(alone) >= 6
    monkeypatch.setattr("kresnet.data.duplicates._ROWS", 4)
    monkeypatch.setattr("kresnet.data.duplicates._COLUMNS", 3)
    monkeypatch.setattr("kresnet.data.duplicates._DESCRIBED", 5)
    monkeypatch.setattr("kresnet.data.duplicates.cores", lambda: 3)
    together = find(rows)
    assert {(pair.first, pair.second) for pair in together} == alone
    assert list(together) == sorted(together, key=lambda pair: (pair.first, pair.second))


def test_groups_join_chains():
    pairs = [Pair(4, 5, "near"), Pair(0, 3, "same file"), Pair(3, 4, "near"), Pair(1, 6, "near")]
    assert groups(8, pairs) == [0, 1, 2, 0, 0, 0, 1, 7]


def test_progress_ends_with_all(photos):
    told = []
    find(
        [facts(image, str(k)) for k, image in enumerate(photos)],
        lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (60, 60)


@pytest.mark.parametrize("shape", [(1, 1), (7, 301), (150, 200), (700, 1100)])
def test_thumbnail_is_the_average_of_areas(shape):
    pixels = np.asarray(photo(2).resize(shape[::-1]))
    told = look(pixels)
    assert len(told) == 4 + SIDE * SIDE
    rows, columns = (area_weights(size, SIDE) for size in shape)
    expected = rows @ (pixels @ np.array([0.299, 0.587, 0.114])) @ columns.T
    # Of the largest, every second row and every third column is taken.
    most = 8 if shape[0] > 512 else 0.51
    assert np.abs(thumbnails([told])[0] - expected).max() < most
    assert look(255 - pixels)[:4] != told[:4]


def test_area_weights_average():
    for size, made, margin in ((5, 3, 0.0), (3, 7, 0.0), (32, 32, 0.04)):
        weights = area_weights(size, made, margin)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        middle = weights @ np.arange(size)
        assert middle[0] + middle[-1] == pytest.approx(size - 1, abs=1e-5)


PLANTED = 12  # images of each class for each change
BURSTS = {  # of one scene, one taken after the other, as one sees: no false pairs
    ("14741866338_bdc8bfc8d5_n.jpg", "14925398301_55a180f919_n.jpg"),
    ("22755811033_cd17b109e0.jpg", "23356825566_f5885875f2.jpg"),
}


@pytest.mark.slow
def test_planted_leaks_between_train_and_validation_on_real_photos(shared, tmp_path):
    """Copies of training photos of five flowers, changed in every way, among the validation's."""
    truth = {}  # name of the copy: name of the photo
    for folder in sorted((shared / "flowers").iterdir()):
        photos = sorted(folder.glob("*.jpg"))
        for number, path in enumerate(photos):
            split = "train" if number < 90 else "val"
            target = tmp_path / split / folder.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        for turn, change in enumerate(["duplicate", *CHANGES]):
            for k in range(PLANTED):
                path = photos[(turn * 7 + k * 3) % 90]
                image = Image.open(path).convert("RGB")
                contents = (
                    path.read_bytes()
                    if change == "duplicate"
                    else encode(CHANGES[change](image), "JPEG", quality=88)
                )
                name = f"val/{folder.name}/{change.replace(' ', '_')}-{k}.jpg"
                (tmp_path / name).write_bytes(contents)
                truth[name] = f"train/{folder.name}/{path.name}"

    report = check(tmp_path)
    start = len(str(tmp_path)) + 1
    told = {f.kind: [[p[start:] for p in g] for g in f.groups] for f in report.findings}
    exact = {name for group in told["leak"] for name in group if name in truth}
    assert exact == {name for name in truth if "duplicate-" in name}

    pairs = [tuple(pair) for kind in told if kind.startswith("near") for pair in told[kind]]

    def source(name):
        return truth.get(name, name)

    found = {b for a, b in pairs if a == source(b)} | {a for a, b in pairs if b == source(a)}
    sources = [tuple(sorted(source(n).split("/")[-1] for n in pair)) for pair in pairs]
    other = [names for names in sources if names[0] != names[1]]
    false = [names for names in other if names not in BURSTS]
    near = [name for name in truth if "duplicate-" not in name]
    for change in CHANGES:
        some = [name for name in near if f"/{change.replace(' ', '_')}-" in name]
        share = sum(name in found for name in some) / len(some)
        print(f"{change}: {share:.1%} of {len(some)}")
    print(f"all: {sum(name in found for name in near) / len(near):.2%} of {len(near)}")
    print(f"of {len(pairs)} pairs, {len(other) - len(false)} of bursts and {len(false)} false")
    assert sum(name in found for name in near) >= 0.95 * len(near)
    assert len(false) < 0.01 * len(pairs)
