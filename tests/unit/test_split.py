"""Stratified, deterministic, and never apart what is the same."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kresnet.data.scan import Index, Problem, Row
from kresnet.data.split import read_split, save_split, split
from kresnet.errors import DataError


def make(sizes, given=None, *, copies=1, start=0):
    """An index with `sizes[k]` different images of class k, each there `copies` times."""
    rows = [
        Row(f"/data/{given}/{k}/{n}-{copy}.png", k, given, 8, 8, f"{start + k:04x}{n:060x}")
        for k, size in enumerate(sizes)
        for n in range(size)
        for copy in range(copies)
    ]
    problems = (Problem("/data/x", "empty file"),)
    return Index("/data", tuple(f"class {k}" for k in range(len(sizes))), tuple(rows), problems)


def joined(*indexes):
    return replace(indexes[0], rows=tuple(row for index in indexes for row in index.rows))


def places(index):
    return {(row.label, row.digest): row.split for row in index.rows}


def sizes_of(index, name):
    counts = index.counts().get(name, {})
    return [counts.get(c, 0) for c in index.classes]


def test_flat_small_has_no_test():
    made = split(make([100, 40, 20]))
    assert sizes_of(made, "val") == [15, 6, 3]
    assert sizes_of(made, "train") == [85, 34, 17]
    assert made.select("test") == made.select(None) == ()


def test_flat_large_has_a_test():
    assert sizes_of(split(make([150, 149])), "test") == [0, 0]
    made = split(make([200, 100]))
    assert sizes_of(made, "test") == [30, 15]
    assert sizes_of(made, "val") == [30, 15]
    assert sizes_of(made, "train") == [140, 70]
    assert split(make([200, 100]), test=0).select("test") == ()


def test_nothing_but_the_split_changes():
    index = make([20, 30])
    made = split(index)
    assert (made.root, made.classes, made.problems) == (index.root, index.classes, index.problems)
    assert tuple(replace(row, split=None) for row in made.rows) == index.rows


def test_rounding_keeps_the_total_and_the_minimum():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(2, 40, rng.integers(2, 30)).tolist()
        val, test = rng.uniform(0.05, 0.45, 2)
        made = split(make(sizes), val=val, test=test)
        counts = {name: np.array(sizes_of(made, name)) for name in ("train", "val", "test")}
        assert counts["train"].min() >= 1
        assert counts["val"].min() >= 1
        assert (sum(counts.values()) == sizes).all()
        exact = val * np.array(sizes)
        assert (np.abs(counts["val"] - exact) <= 1).all()
        assert (counts["test"] - test * np.array(sizes) <= 1).all()
        if exact.min() >= 1:
            assert abs(counts["val"].sum() - exact.sum()) <= 0.5


def test_smallest_classes():
    made = split(make([2, 3, 2]), val=0.1, test=0.6)
    assert sizes_of(made, "val") == [1, 1, 1]
    assert min(sizes_of(made, "train")) == 1
    assert sizes_of(made, "test") == [0, 1, 0]


def test_content_and_seed_alone_decide():
    index = make([50, 31, 7])
    expected = places(split(index, test=0.2))
    rows = [replace(row, path=f"/other/{k}") for k, row in enumerate(reversed(index.rows))]
    assert places(split(replace(index, rows=tuple(rows)), test=0.2)) == expected
    other = places(split(index, test=0.2, seed=1))
    assert other != expected
    assert Counter(other.values()) == Counter(expected.values())


def test_order_of_names_does_not_decide():
    """Classes of equal size round alike whatever they are called."""
    index = make([7, 7, 7, 7], start=1)
    turned = tuple(replace(row, label=3 - row.label) for row in index.rows)
    expected = {digest: name for (_, digest), name in places(split(index)).items()}
    got = {d: name for (_, d), name in places(split(replace(index, rows=turned))).items()}
    assert got == expected


def test_identical_files_stay_together():
    made = split(make([20, 10], copies=3), val=0.1, test=0.2)
    by_digest = {}
    for row in made.rows:
        by_digest.setdefault((row.label, row.digest), set()).add(row.split)
    assert all(len(names) == 1 for names in by_digest.values())
    assert sizes_of(made, "val") == [6, 3]  # 2 and 1 of 20 and 10 different ones


def test_given_splits_stay():
    index = joined(make([20, 20], "train"), make([3, 4], "val", start=100))
    assert split(index) == index
    with_test = joined(index, make([5, 1], "test", start=200))
    assert split(with_test) == with_test
    assert split(index, val=0.5, seed=3) == index


def test_a_single_training_image_is_enough_where_validation_is_given():
    index = joined(make([1, 1], "train"), make([3, 4], "val", start=100))
    assert split(index) == index


def test_missing_validation_is_carved_from_training():
    given = joined(make([400, 200], "train"), make([5, 6], "test", start=100))
    made = split(given)
    assert sizes_of(made, "val") == [60, 30]
    assert sizes_of(made, "train") == [340, 170]
    assert made.select("test") == given.select("test")


def test_test_set_beside_given_folders_only_on_demand():
    given = make([400, 200], "train")
    assert split(given).select("test") == ()
    assert sizes_of(split(given, test=0.1), "test") == [40, 20]
    both = joined(given, make([5, 5], "val", start=100))
    made = split(both, test=0.1)
    assert sizes_of(made, "test") == [40, 20]
    assert made.select("val") == both.select("val")


@pytest.mark.parametrize(("val", "test"), [(0, 0), (1, 0), (-0.1, 0), (0.5, 0.5), (0.2, -0.1)])
def test_shares_are_checked(val, test):
    message = f"The shares must be 0 < val < 1, .* Received: val={val}, test={test}. Take smaller"
    with pytest.raises(DataError, match=message):
        split(make([9, 9]), val=val, test=test)


def test_there_must_be_training_images():
    with pytest.raises(DataError, match=r"must be images to train on\. Received: source='/data'"):
        split(make([9, 9], "val"))


def test_a_class_needs_two_different_images():
    message = "at least 2 different images, .* Received: class='class 1' with 1. Add images"
    with pytest.raises(DataError, match=message):
        split(make([9, 1]))
    with pytest.raises(DataError, match=message):
        split(make([9, 1], copies=5))


def with_groups(index, group_of):
    rows = tuple(replace(row, group=group_of(k, row)) for k, row in enumerate(index.rows))
    return replace(index, rows=rows)


def test_groups_are_not_divided_and_shares_are_met_all_the_same():
    rng = np.random.default_rng(3)
    names = rng.integers(0, 60, 600)
    made = split(with_groups(make([400, 200]), lambda k, row: f"plant {names[k]}"), test=0.2)
    by_group = {}
    for row in made.rows:
        by_group.setdefault(row.group, set()).add(row.split)
    assert len(by_group) == 60
    assert all(len(splits) == 1 for splits in by_group.values())
    for name, share in (("val", 0.15), ("test", 0.2)):
        got = np.array(sizes_of(made, name)) / [400, 200]
        assert (np.abs(got - share) < 0.06).all()


def test_a_class_of_one_group_is_refused():
    index = with_groups(make([9, 9]), lambda k, row: f"film {row.label}")
    with pytest.raises(DataError, match=r"at least 2 groups.* Received: class='class 0' with 1"):
        split(index)


def test_alike_images_stay_together_but_not_whole_classes():
    pairs = [(k, k + 1) for k in range(0, 60, 3)]  # 0-1, 3-4, ... of the first class
    made = split(make([60, 30]), alike=pairs, val=0.3)
    assert all(made.rows[a].split == made.rows[b].split for a, b in pairs)
    assert abs(sizes_of(made, "val")[0] - 18) <= 1
    chained = [(k, k + 1) for k in range(29)]  # a class that is one long film
    made = split(make([30, 30]), alike=chained, val=0.2)
    assert sizes_of(made, "val") == [6, 6]


def test_alike_images_of_two_classes_stay_together():
    pairs = [(k, 40 + k) for k in range(10)]
    made = split(make([40, 40]), alike=pairs, val=0.25)
    assert all(made.rows[a].split == made.rows[b].split for a, b in pairs)
    assert np.abs(np.array(sizes_of(made, "val")) - 10).max() <= 1


def test_new_images_move_few_others_and_none_with_a_kept_split(tmp_path):
    before = split(make([200, 100]), test=0.2)
    grown = joined(make([200, 100]), make([30, 20], start=500))
    after = places(split(grown, test=0.2))
    moved = sum(after[key] != place for key, place in places(before).items())
    assert moved <= 50  # as many as are new

    save_split(before, tmp_path / "split.csv")
    kept = split(grown, test=0.2, keep=read_split(tmp_path / "split.csv"))
    assert all(places(kept)[key] == place for key, place in places(before).items())
    assert sizes_of(kept, "val") == [34, 18]  # 15 % of 230 and 120
    assert sizes_of(kept, "test") == [46, 24]


def test_what_is_like_a_kept_test_image_is_not_trained_on():
    index = make([40, 40])
    keep = {row.digest: "test" for row in index.rows[:3]}
    keep |= {row.digest: "train" for row in index.rows[3:6]}
    made = split(index, keep=keep, alike=[(0, 20), (3, 21), (20, 21)])
    assert [made.rows[k].split for k in (0, 3, 20, 21)] == ["test", "train", "test", "test"]


def test_a_split_file_is_checked(tmp_path):
    (tmp_path / "x.csv").write_text("path,split\na.png,train\n")
    with pytest.raises(DataError, match=r"columns digest and split.*line 2, with digest=None"):
        read_split(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("digest,split\nabc,training\n")
    with pytest.raises(DataError, match="digest='abc' and split='training'"):
        read_split(tmp_path / "y.csv")
    with pytest.raises(DataError, match=r"readable CSV. Received: .*z\.csv"):
        read_split(tmp_path / "z.csv")
