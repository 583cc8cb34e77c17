"""From a source to divided images: left out, grouped, kept together."""

import shutil

import numpy as np
import pytest
from conftest import stripes
from PIL import Image

from kresnet.data.prepare import prepare, read_exclusions
from kresnet.data.scan import Index
from kresnet.data.split import save_split
from kresnet.errors import ConfigError, DataError


@pytest.fixture
def plants(tmp_path):
    """Two classes; ten plants of each, three photos a plant."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("fern", "moss")):
        (tmp_path / "plants" / name).mkdir(parents=True)
        for k in range(30):
            stripes(rng, label).save(tmp_path / "plants" / name / f"p{k // 3}_{k}.png")
    return tmp_path / "plants"


def by_group(index, number_of=lambda row: row.group):
    found = {}
    for row in index.rows:
        found.setdefault((row.label, number_of(row)), set()).add(row.split)
    return found


def test_a_regular_expression_groups_by_path(plants):
    told = []
    index = prepare(plants, group_by=r"(\w+)/(p\d+)_", val=0.3, tell=told.append)
    found = by_group(index)
    assert len(found) == 20
    assert all(len(splits) == 1 for splits in found.values())
    assert index.rows[0].group == "fern/p0"
    assert told[0] == r"20 groups by (\w+)/(p\d+)_"


def test_a_column_groups_where_the_manifest_has_it(plants):
    lines = ["path,label,plant"]
    for name in ("fern", "moss"):
        lines += [f"{name}/p{k // 3}_{k}.png,{name},{name} {k % 10}" for k in range(30)]
    (plants / "list.csv").write_text("\n".join(lines))
    index = prepare(plants / "list.csv", group_by="plant", val=0.3)
    found = by_group(index)
    assert len(found) == 20
    assert all(len(splits) == 1 for splits in found.values())
    assert {row.group for row in index.rows} == {
        f"{n} {k}" for n in ("fern", "moss") for k in range(10)
    }


def test_what_groups_nothing_is_told(plants):
    with pytest.raises(DataError, match=r"at least two groups. Received: 'plot', which finds none"):
        prepare(plants, group_by="plot")
    with pytest.raises(DataError, match="which finds one"):
        prepare(plants, group_by="p")
    with pytest.raises(ConfigError, match=r"regular expression. Received: '\(p' \(missing \)"):
        prepare(plants, group_by="(p")


def test_copies_are_kept_together(plants, tmp_path):
    """Twenty photos of 96 px are there again, recompressed."""
    rng = np.random.default_rng(1)
    for k in range(20):
        noise = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        photo = Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)
        photo.save(plants / "fern" / f"c{k}.png")
        photo.save(plants / "fern" / f"c{k} again.jpg", quality=60)
    told = []
    index = prepare(plants, val=0.4, tell=told.append)
    places = {index.name_of(row): row.split for row in index.rows}
    for k in range(20):
        assert places[f"fern/c{k}.png"] == places[f"fern/c{k} again.jpg"]
    assert {places[f"fern/c{k}.png"] for k in range(20)} == {"train", "val"}
    assert told[0] == "20 pairs of alike images are kept together; `kresnet check` names them"
    # The stripes look so much the same that this means nothing.
    assert "too alike to tell what belongs together, and are divided" in told[1]


def test_images_are_left_out_and_stay_on_record(plants, tmp_path):
    table = tmp_path / "wrong.csv"
    table.write_text(
        "path,exclude\nfern/p0_0.png,yes\nmoss/p0_1.png,no\n" + f"{plants / 'moss/p9_29.png'},x\n"
    )
    assert read_exclusions(table) == {"fern/p0_0.png", str(plants / "moss/p9_29.png")}
    index = prepare(plants, exclude=table)
    assert len(index.rows) == 58
    assert "moss/p0_1.png" in {index.name_of(row) for row in index.rows}
    assert [(p.path, p.reason) for p in index.problems] == [
        (str(plants / "fern/p0_0.png"), "left out by wrong.csv"),
        (str(plants / "moss/p9_29.png"), "left out by wrong.csv"),
    ]
    table.write_text("path\nfern/nothing.png\n")
    with pytest.raises(DataError, match=r"Received: 'fern/nothing.png', which '.*plants' does not"):
        prepare(plants, exclude=table)
    table.write_text("file\nx\n")
    with pytest.raises(DataError, match=r"column `path`. Received: .*wrong.csv with the columns"):
        prepare(plants, exclude=table)
    table.write_text("path\n" + "".join(f"moss/p{k // 3}_{k}.png\n" for k in range(30)))
    with pytest.raises(DataError, match="every image of class='moss'"):
        prepare(plants, exclude=table)


def test_an_earlier_split_is_kept_by_content(plants, tmp_path):
    first = prepare(plants, val=0.2, test=0.2)
    save_split(first, tmp_path / "split.csv")
    shutil.move(plants / "moss" / "p0_1.png", plants / "moss" / "renamed.png")
    stripes(np.random.default_rng(9), 1).save(plants / "moss" / "new.png")
    again = prepare(plants, val=0.2, test=0.2, seed=5, keep_split=tmp_path / "split.csv")
    before = {row.digest: row.split for row in first.rows}
    assert sum(row.digest not in before for row in again.rows) == 1
    assert all(row.split == before.get(row.digest, row.split) for row in again.rows)
    (tmp_path / "run").mkdir()
    first.save(tmp_path / "run")  # as a run keeps it
    other = prepare(plants, seed=5, test=0.2, keep_split=tmp_path / "run" / "index.csv")
    assert all(row.split == before.get(row.digest, row.split) for row in other.rows)
    assert Index.load(tmp_path / "run").rows == first.rows
