"""What a search has found: its ranking, its words, its drawings, its numbers."""

import itertools
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from searches import SPACE, accuracy, recipe_for, write_study

from kresnet.errors import ResourceError
from kresnet.tune.charts import bars, history, parallel
from kresnet.tune.importance import EPOCHS, importance, place
from kresnet.tune.results import findings, in_words, leaderboard, luck, write_hparams, write_page
from kresnet.tune.space import Space


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = write_study(tmp_path_factory.mktemp("studies") / "flowers")
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def found(ledger):
    return findings(ledger)


def test_the_leaderboard_is_the_trials_in_order(found):
    head, *rows = leaderboard(found, most=30).splitlines()
    assert head.split() == ["trial", "val", "loss", "epochs", "time", *found.space.entries]
    scores = [float(row.split()[3 if " plan" in row else 2]) for row in rows[:22]]
    assert scores == sorted(scores, reverse=True)
    best = max((t for t in found.trials if t.score), key=lambda t: t.score)
    assert rows[0].split()[:2] == ["1", str(best.number)]
    plan = next(row for row in rows if " plan " in row)
    assert plan.split()[-4:] == ["5e-5", "light", "3", "0.2"]  # the planner's own values
    without = next(t for t in found.ranking if t.fields.get("augment") == "none")
    assert rows[list(found.ranking).index(without)].split()[-1] == "-"
    assert rows[22:] == ["failed  4: Ended by SIGKILL <b>.", "failed  9: Ended by SIGKILL <b>."]


def test_a_long_ranking_is_cut_and_shorter_trials_are_counted(tmp_path):
    ledger = write_study(tmp_path / "s", trials=8)
    short = ledger.add(values={"lr": 1e-4}, fields={"lr": 1e-4}, horizon=10, epochs=3)
    ledger.change(short.number, status="done", score=0.99, loss=0.1, epochs_done=3)
    lines = leaderboard(findings(ledger), most=2).splitlines()
    ledger.close()
    assert "and 5 more" in lines
    assert "1 stopped earlier and are not compared" in lines
    assert not any("0.990" in line for line in lines)


def test_the_words_tell_the_gain_and_the_luck(ledger, found):
    planned, best = found.trials[0].score, found.ranking[0].score
    assert found.gain == pytest.approx(best - planned)
    lines = in_words(found)
    assert lines[0] == (
        f"Trial {found.ranking[0].number} is the best: {best:.1%} on the validation images, "
        f"{100 * (best - planned):+.1f} points over the planner's recipe ({planned:.1%})."
    )
    told = findings(ledger, test={"accuracy": 0.875, "n": 80, "interval": [0.785, 0.931]})
    assert (
        "On the 80 test images, which no trial has seen, the winner is right on 87.5%"
        in (in_words(told)[-1])
    )


def test_luck_is_what_the_best_of_equals_shows():
    rng = np.random.default_rng(1)
    images, trials, share = 90, 20, 0.9
    draws = rng.binomial(images, share, (4000, trials)) / images
    measured = draws.max(axis=1).mean() - share
    assert luck(share, trials, images).points == pytest.approx(measured, rel=0.12)
    assert luck(share, 1, images).points == 0


def test_importance_finds_what_decides(found):
    shares = found.importance.shares
    assert next(iter(shares)) == "lr"
    assert shares["lr"][0] > 0.5
    assert shares["lr"][0] > 4 * max(shares["train_from"][0], shares["color"][0])
    assert all(low <= mean <= high for mean, low, high in shares.values())
    assert sum(mean for mean, _, _ in shares.values()) < 1.3
    assert found.importance.explained > 0.4
    assert found.importance.trials == 21  # neither failed nor planned


def test_importance_of_noise_is_not_to_be_relied_on(tmp_path):
    ledger = write_study(tmp_path / "s", trials=40)
    rng = np.random.default_rng(2)
    for trial in ledger.trials():
        ledger.change(trial.number, status="done", score=float(rng.uniform(0.6, 0.9)))
    noise = findings(ledger)
    ledger.close()
    assert noise.importance.explained <= 0.1


def test_importance_says_nothing_of_too_few_or_of_equal_trials(tmp_path):
    ledger = write_study(tmp_path / "s", trials=11)
    assert findings(ledger).importance is None
    ledger.close()
    ledger = write_study(tmp_path / "t", trials=20)
    for trial in ledger.trials():
        ledger.change(trial.number, status="done", score=0.75)
    assert findings(ledger).importance is None
    ledger.close()


def test_epochs_are_not_blamed_on_the_fields(tmp_path):
    ledger = write_study(tmp_path / "s", trials=60)
    rng = np.random.default_rng(3)
    for trial in ledger.trials():
        epochs = int(rng.choice([1, 3, 9]))
        ledger.change(trial.number, status="done", epochs=epochs, score=0.3 + 0.05 * epochs)
    found = importance(ledger.trials(), Space.of(SPACE))
    ledger.close()
    assert next(iter(found.shares)) == EPOCHS
    assert found.shares[EPOCHS][0] > 0.9


def test_a_place_is_even_in_what_the_field_is_even_in():
    entries = Space.of(SPACE).entries
    assert place(entries["lr"], 1e-4) == pytest.approx(0.5)
    assert place(entries["train_from"], 2) == pytest.approx(1 / 3)
    assert place(entries["augment"], "trivial") == 1
    assert math.isnan(place(entries["augment"], "rand"))


# ---------------------------------------------------------------- drawings


def test_the_best_so_far_never_falls_and_every_dot_is_inside():
    rng = np.random.default_rng(0)
    points = [(float(k), float(rng.uniform(0.2, 0.97)), f"trial {k}") for k in range(1, 31)]
    root = ElementTree.fromstring(str(history("a < b", points, axis="trials", first=0.4)))
    assert root.get("aria-label") == "a < b"
    line = [tuple(map(float, p.split(","))) for p in root.find("polyline").get("points").split()]
    assert all(b[1] <= a[1] for a, b in itertools.pairwise(line))  # up is less
    assert all(b[0] >= a[0] for a, b in itertools.pairwise(line))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    assert len(dots) == 30
    assert min(y for _, y in dots) == pytest.approx(line[-1][1], abs=0.1)
    assert all(58 <= x <= 420 and 12 <= y <= 222 for x, y in dots)
    assert sum(e.get("class") == "ideal" for e in root.iter("line")) == 1


def test_parallel_lines_go_through_the_values(found):
    space = found.space
    root = ElementTree.fromstring(str(parallel("title", found.trials, space)))
    lines = list(root.iter("polyline"))
    assert len(lines) == 21
    best = [line for line in lines if line.get("class") == "first"]
    assert len(best) == 2
    assert best[-1] is lines[-1]
    leader = found.ranking[0]
    assert best[-1].find("title").text.startswith(f"trial {leader.number}: {leader.score:.1%}; lr")
    points = [tuple(map(float, p.split(","))) for p in best[-1].get("points").split()]
    expected = [place(space.entries[n], leader.fields[n]) for n in SPACE if n in leader.fields]
    measured = [(x - 16) / (420 - 16) for x, _ in points]
    assert measured == pytest.approx([*expected, 1.0], abs=1e-3)
    height = float(root.get("viewBox").split()[3])
    assert all(0 < y < height for _, y in points)


def test_bars_are_as_long_as_the_shares():
    drawn = bars("title", {"lr": (0.6, 0.5, 0.8), "<i>": (0.3, 0.2, 0.35)})
    root = ElementTree.fromstring(str(drawn))
    long, short = (float(rect.get("width")) for rect in root.iter("rect"))
    assert long == pytest.approx(2 * short, rel=0.01)
    assert [t.text for t in root.iter("text")] == ["lr", "60%", "<i>", "30%"]
    assert str(bars("title", {})) == str(parallel("", [], Space.of(SPACE))) == ""


# ---------------------------------------------------------------- files


def test_everything_is_json(found):
    content = json.loads(json.dumps(found.as_dict()))
    assert content["counts"] == {"done": 22, "failed": 2}
    assert content["best"]["number"] == found.ranking[0].number
    assert len(content["trials"]) == 24
    assert content["gain"] == found.gain
    assert content["in_words"] == in_words(found)


def test_a_study_without_results_has_a_page(tmp_path):
    ledger = write_study(tmp_path / "s", trials=0)
    empty = findings(ledger)
    ledger.close()
    assert in_words(empty) == ["No trial has come to its end yet."]
    assert leaderboard(empty).split() == ["trial", "val", "loss", "epochs", "time"]
    text = write_page(empty, tmp_path / "s").read_text()
    assert text.count("No trial has come to its end yet.") == 2
    assert empty.as_dict()["best"] is None


def test_a_page_that_cannot_be_written_is_one_line(found, tmp_path):
    with pytest.raises(ResourceError, match=r"The study's directory must be writable. Received"):
        write_page(found, tmp_path / "nowhere")


def test_tensorboard_gets_every_finished_trial(found, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    (tmp_path / "tensorboard" / "9999").mkdir(parents=True)  # of an earlier time
    folder = write_hparams(found, tmp_path)
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert runs == [f"{t.number:04d}" for t in found.trials if t.score is not None]
    trial = found.ranking[0]
    events = EventAccumulator(str(folder / f"{trial.number:04d}")).Reload()
    tensor = events.Tensors("score")[0].tensor_proto
    assert np.frombuffer(tensor.tensor_content, np.float32)[0] == pytest.approx(trial.score)
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["lr"].number_value == pytest.approx(trial.fields["lr"])
    assert told["augment"].string_value == trial.fields["augment"]


def test_the_made_up_scores_are_of_the_recipe(found):
    planned = recipe_for()
    fields = {name: getattr(planned, name) for name in ("lr", "augment")}
    assert found.trials[0].score == pytest.approx(accuracy(fields), abs=0.01)
