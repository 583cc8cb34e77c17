"""The bench of the check: what it says is found, was found."""

from test_duplicates import facts, photo

from kresnet.bench import check


def test_what_is_found_of_copies_is_theirs_alone():
    photos = [photo(seed) for seed in range(8)]
    originals = [facts(image, f"a{k}") for k, image in enumerate(photos)]
    copies = [facts(check.CHANGES["half"](image), f"b{k}") for k, image in enumerate(photos)]
    assert check.found(originals, copies) == 1.0
    assert check.found(originals, copies[1:] + copies[:1]) == 0.0


def test_tables_of_photos(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    for k in range(4):
        folder = tmp_path / "photos" / f"class{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        photo(k).save(folder / f"{k}.png")
    monkeypatch.setattr("sys.argv", ["check", str(tmp_path / "photos"), "--turns", "1"])
    check.main()
    said = capsys.readouterr().out
    assert "| copies of 4 photos | found |" in said
    assert sum(f"| {change} | " in said for change in check.CHANGES) == len(check.CHANGES)
    assert "0 pairs of the photos themselves" in said
    assert "| photos | 4 | " in said
