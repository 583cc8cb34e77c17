"""TensorBoard and MLflow show every epoch once, whatever happens, and never end a training."""

import signal
from dataclasses import replace

import numpy as np
import pytest
from conftest import stripes

import kresnet
from kresnet.console import Console
from kresnet.data.prepare import prepare
from kresnet.errors import ConfigError, Interrupted, ResourceError
from kresnet.evaluate.held_out import score
from kresnet.train import stages, trackers
from kresnet.train.plan import plan
from kresnet.train.run import Run
from kresnet.train.score import Score
from kresnet.train.trackers import Trackers, check_trackers
from kresnet.zoo import Preprocessing, build

EPOCHS = 3


@pytest.fixture(scope="module")
def network():
    return build("resnet8_cifar", num_classes=4)


@pytest.fixture(scope="module")
def index(striped):
    return prepare(striped, val=0.25, test=0.0, seed=0)


@pytest.fixture
def begun(striped, index, tmp_path):
    """Make a run that names its trackers and is not yet trained."""

    def begin(*names, **settings):
        recipe = plan(
            data=str(striped),
            num_images=36,
            classes=index.classes,
            variant="resnet8_cifar",
            weights=None,
            image_size=32,
            overrides={"batch_size": 12, "precision": "float32", "epochs": EPOCHS} | settings,
        )
        run = Run.create(tmp_path / "runs", "striped", recipe, index)
        run.update(trackers=list(names))
        return run

    return begin


def rows(count, *, seed=0, speed=100.0):
    """Rows of metrics.csv as a training has them; the same seed, the same but for the speed."""
    rng = np.random.default_rng(seed)
    return [
        {
            "epoch": k + 1,
            "loss": round(float(rng.uniform(0.2, 2)), 6),
            "val_loss": round(float(rng.uniform(0.2, 2)), 6),
            "val_accuracy": round(float(rng.uniform()), 6),
            "lr": f"{rng.uniform(1e-5, 1e-3):.3g}",
            "images_per_s": speed + k,
            "wait": 0.125,
        }
        for k in range(count)
    ]


class Saying:
    """Keeps the lines."""

    def __init__(self):
        self.lines = []

    def __call__(self, topic, text):
        self.lines.append(f"{topic} {text}")


# ---------------------------------------------------------------- TensorBoard


@pytest.fixture
def shown():
    """What TensorBoard's own reader finds in a run: values by tag and step, and the rest."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(run):
        events = reader.EventAccumulator(
            str(run.path / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
        )
        events.Reload()
        tags = events.Tags()
        values = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in tags["scalars"]
        }
        pictures = {tag: len(events.Images(tag)) for tag in tags["images"]}
        return values, pictures, events.Graph() if tags["graph"] else None

    return read


def points(table, key):
    return [(row["epoch"], pytest.approx(float(row[key]), rel=1e-6)) for row in table]


def test_tensorboard_shows_numbers_pictures_and_the_network(begun, shown, network):
    run, say = begun("tensorboard"), Saying()
    table = rows(3)
    with Trackers(run, say) as guests:
        for k in (1, 2, 3):
            guests.epochs(table[:k])
        run.save_preprocessing(Preprocessing(image_size=32))
        results = score(run, network)
        run.update(probe={"accuracy": 0.25, "loss": 1.5})
        guests.finish(network)
    values, pictures, graph = shown(run)
    for tag, key in {
        "loss/training": "loss",
        "loss/validation": "val_loss",
        "accuracy/validation": "val_accuracy",
        "learning rate/of the head": "lr",
        "speed/images a second": "images_per_s",
        "speed/share of waiting for data": "wait",
    }.items():
        assert values[tag] == points(table, key)
    assert values["more/final_val_accuracy"] == [(0, pytest.approx(results["val"].accuracy))]
    assert values["more/probe_val_accuracy"] == [(0, 0.25)]
    assert pictures == {"first batch": 1, "confusion": 1}
    nodes = {node.name: node for node in graph.node}
    assert len(nodes) == len(network.layers)
    (added,) = (node for name, node in nodes.items() if name == "stage2/block1/add")
    assert {name.rsplit("/", 1)[0] for name in added.input} == {"stage2/block1"}
    assert len(added.input) == 2
    assert nodes["head"].attr["parameters"].i == 4 * 65
    assert all(name in nodes for node in graph.node for name in node.input)
    assert len(say.lines) == 1
    assert say.lines[0].startswith(f"tracker tensorboard --logdir {run.path / 'tensorboard'}")


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 7])
def test_epochs_done_again_after_a_kill_come_once(begun, shown, cut):
    run = begun("tensorboard")
    Trackers(run, Saying()).__enter__().epochs(rows(3, speed=100.0))  # and killed
    (file,) = (run.path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[: file.stat().st_size - cut])  # within the third epoch
    with Trackers(run, Saying()) as guests:
        for k in (2, 3, 4):  # resumed after the first
            guests.epochs(rows(4, speed=50.0)[:k])
    values, pictures, _ = shown(run)
    assert values["loss/training"] == points(rows(4), "loss")
    speeds = [value for _, value in values["speed/images a second"]]
    assert speeds == [100, 101, 52 if cut else 102, 53]
    assert pictures["first batch"] == 1


@pytest.mark.slow
def test_epochs_that_are_others_after_a_trouble_replace_the_first(begun, shown):
    run = begun("tensorboard")
    before, after = rows(3, seed=0), rows(3, seed=1)
    again = [before[0], *after[1:]]
    with Trackers(run, Saying()) as guests:
        guests.epochs(before)
        guests.epochs(again[:2])
        guests.epochs(again)
    assert shown(run)[0]["loss/validation"] == points(again, "val_loss")
    with Trackers(run, Saying()) as guests:  # nothing is new
        guests.epochs(again)
    assert shown(run)[0]["loss/training"] == points(again, "loss")


# ---------------------------------------------------------------- MLflow


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A local store of MLflow, and its own client."""
    if trackers.find_spec("mlflow") is None:
        pytest.skip("the extra `mlflow` is not installed")
    monkeypatch.chdir(tmp_path)  # artifacts go beside
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def client():
        import mlflow

        return mlflow.MlflowClient()

    return client


def history(client, run, key):
    found = client.get_metric_history(run.info["mlflow"]["run"], key)
    return sorted((metric.step, metric.value) for metric in found)


@pytest.mark.filterwarnings("ignore")  # of MLflow's own libraries
def test_mlflow_keeps_settings_numbers_and_files(begun, store, network):
    run, say = begun("mlflow", lr=0.00123), Saying()
    table = rows(2)
    with Trackers(run, say) as guests:
        guests.epochs(table)
        run.save_preprocessing(Preprocessing(image_size=32))
        results = score(run, network)
        run.write_text("report.html", "<p>read me")
        run.write_metrics(table)
        guests.finish(network)
    client = store()
    found = client.get_run(run.info["mlflow"]["run"])
    assert found.info.run_name == "striped"
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "kresnet"
    assert found.data.params["lr"] == "0.00123"
    assert found.data.params["variant"] == found.data.tags["variant"] == "resnet8_cifar"
    assert history(client, run, "val_loss") == points(table, "val_loss")
    assert found.data.metrics["final_val_accuracy"] == pytest.approx(results["val"].accuracy)
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {*trackers._FILES, "confusion.png", "first_batch.png"}
    (line,) = say.lines
    assert line.startswith(f"tracker mlflow run {found.info.run_id} at sqlite:///")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_is_the_same_run_of_mlflow(begun, store, monkeypatch):
    run, say = begun("mlflow"), Saying()
    guests = Trackers(run, say)
    guests.epochs(rows(3))
    guests.__exit__(Interrupted, Interrupted("stopped"), None)
    client, first = store(), run.info["mlflow"]["run"]
    assert client.get_run(first).info.status == "KILLED"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the run knows
    with Trackers(Run.open(run.path), say) as guests:
        assert client.get_run(first).info.status == "RUNNING"
        guests.epochs(rows(2, speed=50.0))
        guests.epochs(rows(4, speed=50.0))
    assert run.info["mlflow"]["run"] == first
    assert history(client, run, "loss") == points(rows(4), "loss")
    assert [step for step, _ in history(client, run, "images_per_s")] == [1, 2, 3, 4]
    assert client.get_run(first).info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_is_gone_costs_one_line(begun, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, say = begun("mlflow", "tensorboard"), Saying()
    with Trackers(run, say) as guests:
        guests.epochs(rows(1))
    assert len(say.lines) == 2
    assert say.lines[0].startswith("tracker mlflow failed (")
    assert say.lines[0].endswith("; on without it")
    assert "\n" not in say.lines[0]
    assert "mlflow" not in run.info
    assert list((run.path / "tensorboard").iterdir())  # the other one goes on


def test_passwords_are_not_kept():
    assert trackers._to_keep("http://me:secret@host:5000") == {}
    assert trackers._to_keep("postgresql://me:secret@host/db") == {}
    assert trackers._to_keep("http://host:5000") == {"uri": "http://host:5000"}
    assert trackers._to_keep("sqlite:////tmp/a@b/m.db") == {"uri": "sqlite:////tmp/a@b/m.db"}


# ---------------------------------------------------------------- whatever they are


class Failing:
    """A tracker that fails from some call on."""

    def __init__(self, calls):
        self.left = calls

    def __getattr__(self, name):
        def call(*_):
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("the server\nis gone")
            return {}

        return call


@pytest.mark.parametrize("calls", range(9))
def test_a_failure_at_any_moment_costs_one_line(begun, network, monkeypatch, calls):
    monkeypatch.setitem(trackers._TRACKERS, "failing", lambda run, say: Failing(calls))
    monkeypatch.setattr(trackers, "_results", lambda run: {"final_val_accuracy": 0.5})
    picture = stripes(np.random.default_rng(0), 1)
    monkeypatch.setattr(Trackers, "_sheet", lambda self: picture)
    run, say = begun("failing"), Saying()
    picture.save(run.path / "confusion.png")
    with Trackers(run, say) as guests:
        guests.epochs(rows(1))
        guests.finish(network)
    reached = calls < 8  # first batch, asked, told, asked, told, confusion, finish, close
    wanted = "tracker failing failed (ConnectionError: the server is gone); on without it"
    assert say.lines == [wanted] * reached


class Stopping(Console):
    """Presses Ctrl-C when the status shows a given step."""

    def __init__(self, at=None):
        super().__init__(quiet=True)
        self._at = at

    def status(self, text, **_):
        if self._at and self._at in text:
            self._at = None
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_training_that_is_stopped_and_resumed_is_told_whole(begun, shown, monkeypatch):
    class Judging:
        def __call__(self, *model, **team):
            return self if model else Score(0.5, 1.0, 12)

    monkeypatch.setattr(stages, "Judge", Judging())
    run = begun("tensorboard")
    for at in ("epoch 2/3  step 2/3", None):
        console = Stopping(at)
        with Trackers(run, console.line) as guests:
            watched = replace(Run.open(run.path), watch=guests.epochs)
            if at:
                with pytest.raises(Interrupted):
                    stages.train(watched, console)
            else:
                stages.train(watched, console)
    lines = (run.path / "metrics.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[1]) for line in lines]
    wanted = [(k + 1, pytest.approx(loss, rel=1e-6)) for k, loss in enumerate(losses)]
    assert len(wanted) == EPOCHS
    assert shown(run)[0]["loss/training"] == wanted
    assert run.info["kept_epoch"] == 1  # none was better than the first


def test_names_are_checked_before_anything_is_done(monkeypatch):
    assert check_trackers(" mlflow,,tensorboard,mlflow")[1:] == ["tensorboard"]
    assert check_trackers(()) == check_trackers("") == []
    with pytest.raises(ConfigError, match=r"one of tensorboard, mlflow. Received: tracker='tensor"):
        check_trackers("tensorbord")
    with pytest.raises(ConfigError, match=r"Did you mean 'mlflow'"):
        check_trackers(["mlfow"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"Install it: pip install 'kresnet\[mlflow\]'"):
        check_trackers("mlflow")
    assert check_trackers("tensorboard") == ["tensorboard"]  # written by TensorFlow alone


def test_the_command_refuses_a_wrong_name_in_one_line(monkeypatch, capsys, tmp_path):
    from kresnet import cli

    monkeypatch.setattr("sys.argv", ["kresnet", "train", str(tmp_path), "--tracker", "wandb"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "A tracker must be one of tensorboard, mlflow. Received: tracker='wandb'." in error


@pytest.mark.slow  # it exports, and checks the export in fresh processes
def test_the_whole_job_is_shown(striped, tmp_path, shown):
    options = {
        "variant": "resnet8_cifar",
        "weights": None,
        "out": tmp_path / "runs",
        "exports": tmp_path / "saved_models",
        "epochs": 2,
        "precision": "float32",
    }
    console = Stopping("epoch 2/2  step 1/")
    with pytest.raises(Interrupted):
        kresnet.fit(striped, tracker="tensorboard", console=console, **options)
    result = kresnet.resume(tmp_path / "runs" / "striped", console=Stopping())
    run = Run.open(result.run)
    assert run.info["trackers"] == ["tensorboard"]
    values, pictures, graph = shown(run)
    assert [step for step, _ in values["loss/training"]] == [1, 2]
    accuracy = pytest.approx(result.validation.accuracy)
    assert values["more/final_val_accuracy"] == [(0, accuracy)]
    assert pictures == {"first batch": 1, "confusion": 1}
    assert graph.node
