"""The whole job on images that a small network learns in seconds: folder in, export out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import stripes
from safetensors.numpy import load_file

import kresnet
from kresnet import cli
from kresnet.console import Console
from kresnet.errors import ConfigError, DataError, ExportError, Interrupted
from kresnet.evaluate.calibrate import probabilities
from kresnet.evaluate.predict import predict_logits
from kresnet.evaluate.predictions import load_predictions
from kresnet.export import golden, publish, saved_model, servable
from kresnet.export.contract import Contract
from kresnet.export.reference import Sample
from kresnet.export.versions import latest_version, list_versions
from kresnet.train.run import Run
from kresnet.workflow import export_run

SETTINGS = {
    "variant": "resnet8_cifar",
    "weights": None,
    "batch_size": 6,
    "min_area": 0.9,
    "precision": "float32",
    "val": 0.25,
    "lr": 3e-3,
}


def fit(data, folder, **settings):
    return kresnet.fit(
        data,
        out=folder / "runs",
        exports=folder / "saved_models",
        console=Console(quiet=True),
        **SETTINGS | settings,
    )


def kresnet_command(*arguments, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "kresnet", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture
def failed(monkeypatch, capsys):
    """Run a command that must end with an error, here, as its module runs it."""

    def run(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["kresnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, error = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in error
        return ended.value.code, error

    return run


@pytest.fixture(scope="module")
def trained(striped, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    settings = {"epochs": 15, "test": 0.25, "name": "stripes", "target_precision": 0.8}
    return fit(striped, folder, **settings), folder, striped


def test_it_learns_and_reports_every_image_once(trained):
    result, _, _ = trained
    assert (result.validation.n, result.test.n) == (12, 12)
    assert result.validation.accuracy > 0.6  # chance is 0.25
    assert result.probe is None
    report = json.loads((result.run / "evaluation.json").read_text())
    assert sum(map(sum, report["test"]["confusion"])) == 12


def test_the_run_holds_what_it_promises(trained):
    result, _, data = trained
    run = Run.open(result.run)
    assert run.recipe.variant == "resnet8_cifar"
    assert run.recipe.flip is False  # "left" and "right" are in the class names
    assert {r.split for r in run.index.rows} == {"train", "val", "test"}
    assert run.info["status"] == "complete"
    assert run.info["result"] == json.loads(json.dumps(result.as_dict()))
    assert json.loads((run.path / "environment.json").read_text())["keras"] == keras.__version__
    lines = (run.path / "metrics.csv").read_text().splitlines()
    assert len(lines) == 16
    assert (run.path / "confusion.png").stat().st_size > 5000
    assert not run.states.exists()
    assert Path(run.recipe.data) == data


def test_the_plan_is_kept_with_its_reasons_and_its_time_and_the_report_shows_both(trained):
    result, _, _ = trained
    plan = json.loads((result.run / "plan.json").read_text())
    assert plan["recipe"] == Run.open(result.run).recipe.model_dump(mode="json")
    assert plan["reasons"]["epochs"] == "yours"
    assert "'left blue'" in plan["reasons"]["flip"]
    assert plan["estimate"]["seconds"] > 0
    assert plan["disk"]["run"] > (result.run / "model.weights.safetensors").stat().st_size
    page = (result.run / "report.html").read_text()
    assert "the names of classes tell directions" in page
    assert "were estimated (" in page


def test_scores_are_calibrated_on_validation_images_and_kept(trained):
    result, _, _ = trained
    run = Run.open(result.run)
    found = json.loads((run.path / "calibration.json").read_text())
    contract = Contract.load(result.export)
    assert run.info["temperature"] == found["temperature"]["value"] == contract.temperature != 1
    assert found["temperature"]["images"] == 12
    val, test = found["splits"]["val"], found["splits"]["test"]
    assert val["after"]["loss"] <= val["before"]["loss"]
    assert val["after"]["loss"] == pytest.approx(result.validation.loss, abs=1e-6)
    assert sum(b["n"] for b in test["after"]["bins"]) == 12
    assert contract.mirrored is False
    said = load_predictions(run.path)
    assert [one.split for one in said] == ["val"] * 12 + ["test"] * 12
    for name, evaluated in (("val", result.validation), ("test", result.test)):
        right = [one.is_right for one in said if one.split == name]
        assert np.mean(right) == evaluated.accuracy
    for one, row in zip(said, run.index.select("val") + run.index.select("test"), strict=True):
        assert one.digest == sha256(Path(row.path).read_bytes()).hexdigest()
        assert one.label == run.index.classes[row.label]
        assert sum(one.scores.values()) == pytest.approx(1, abs=1e-5)
        assert one.scores[one.predicted] == one.score == max(one.scores.values())


def test_the_users_folder_is_not_touched(trained, striped):
    assert len(list(striped.rglob("*"))) == 4 + 48


def test_the_export_answers_as_the_kept_model_does(trained):
    result, _, _ = trained
    run = Run.open(result.run)
    model = kresnet.build("resnet8_cifar", num_classes=4, weights=run.weights)
    rows = run.index.rows
    logits = predict_logits(model, rows, run.preprocessing)
    expected = probabilities(logits, run.info["temperature"])
    served = tf.saved_model.load(str(result.export)).signatures["serving_bytes"]
    answer = served(image_bytes=tf.stack([tf.io.read_file(row.path) for row in rows]))
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)
    classes = np.array([c.encode() for c in run.index.classes])
    assert answer["label"].numpy().tolist() == classes[expected.argmax(axis=1)].tolist()
    assert answer["labels"].numpy().tolist() == [classes.tolist()] * len(rows)
    np.testing.assert_allclose(answer["score"], expected.max(axis=1), atol=1e-5)


def test_the_export_loads_as_tensorflow_serving_loads_it(trained):
    """The session loader with tag "serve", and a request by the names in the signature."""
    result, _, data = trained
    photo = next(data.glob("*/*.png")).read_bytes()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(result.export))
        signature = meta.signature_def["serving_bytes"]
        scores = session.run(
            signature.outputs["scores"].name, {signature.inputs["image_bytes"].name: [photo, photo]}
        )
        pixels = meta.signature_def["serving_default"].inputs["images"]
        assert pixels.dtype == tf.uint8.as_datatype_enum
    assert scores.shape == (2, 4)
    assert np.array_equal(scores[0], scores[1])


def test_the_export_stores_labels_contract_and_each_weight_once(trained):
    result, _, _ = trained
    contract = Contract.load(result.export)
    assert contract.classes == ("left blue", "left red", "right blue", "right red")
    check = contract.formats["saved_model"]
    assert check.images == 12
    assert check.top1_agreement == 1.0
    assert check.accuracy == check.reference_accuracy == result.validation.accuracy
    assert check.loaders == ("tf.saved_model.load", "session loader", "C API")
    labels = (result.export / "assets" / "labels.txt").read_text().splitlines()
    assert tuple(labels) == contract.classes
    size = sum(f.stat().st_size for f in (result.export / "variables").iterdir())
    assert size < 1.3 * 4 * 270_000


def test_predict_prints_a_label_for_each_photo_from_the_export_alone(trained, tmp_path):
    result, folder, _ = trained
    photo = tmp_path / "my photo.bmp"
    stripes(np.random.default_rng(1), 1, 90).save(photo)
    done = kresnet_command(
        "predict", folder / "saved_models/stripes", photo, "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert answer["path"] == str(photo)
    assert answer["label"] == max(answer["scores"], key=answer["scores"].get)
    assert answer["score"] == max(answer["scores"].values())
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)

    junk = tmp_path / "junk.jpg"
    junk.write_bytes(b"\xff\xd8\xff not a photo")
    done = kresnet_command("predict", result.export, photo, junk, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout.startswith(f"{photo}\t{answer['label']}\t")
    assert "junk.jpg (1 of 2 unreadable)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_evaluate_scores_the_export_on_labelled_images(trained, tmp_path):
    result, folder, data = trained
    done = kresnet_command(
        "evaluate", folder / "saved_models/stripes", data, "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["n"] == 48
    assert report["accuracy"] >= result.test.accuracy * 12 / 48


@pytest.mark.slow
def test_a_second_run_is_a_second_version(trained):
    result, folder, data = trained
    again = fit(data, folder, epochs=1, name="stripes")
    assert again.export == result.export.parent / "2"
    assert again.run == result.run.parent / "stripes-2"
    assert latest_version(result.export.parent) == again.export


@pytest.mark.slow
def test_pretrained_weights_are_probed_and_their_statistics_never_move(trained, tmp_path):
    result, _, data = trained
    again = fit(data, tmp_path, weights=str(Run.open(result.run).weights), epochs=2)
    assert again.kept in ("probe", "fine-tune")
    assert set(again.probe) == {"accuracy", "loss", "n", "seconds"}
    assert again.validation.accuracy >= again.probe["accuracy"]
    before, after = (
        load_file(result.run / "model.weights.safetensors"),
        load_file(again.run / "model.weights.safetensors"),
    )
    for name, value in before.items():
        if "moving" in name:
            assert np.array_equal(value, after[name]), name


def export_again(trained, name):
    """Export the trained model under another name."""
    result, folder, _ = trained
    run = Run.open(result.run)
    model = kresnet.build("resnet8_cifar", num_classes=4, weights=run.weights)
    contract = Contract.load(result.export).model_copy(update={"name": name})
    samples = [Sample(row.path, row.label) for row in run.index.select("val")]
    publish.export(model, contract, folder, samples=samples)


@pytest.mark.slow
def test_an_export_that_disagrees_is_not_published(trained, monkeypatch):
    right = saved_model.fold

    def wrong(model, **options):
        folded = right(model, **options)
        kernel = folded.get_layer("stem_conv").kernel
        kernel.assign(kernel[:, ::-1])  # mirrored, as a subtle bug would
        return folded

    monkeypatch.setattr(saved_model, "fold", wrong)
    with pytest.raises(ExportError, match=r"answer as the Keras model does.*was not published"):
        export_again(trained, "broken")
    assert not list((trained[1] / "broken").iterdir())


@pytest.mark.slow
def test_wrong_pixels_are_caught_by_the_check(trained, monkeypatch):
    original = servable.pixels.prepare

    class Skewed:
        prepare_pixels = servable.pixels.prepare_pixels

        @staticmethod
        def prepare(contents, preprocessing):
            return original(contents, preprocessing)[..., ::-1]  # BGR for RGB

    monkeypatch.setattr(servable, "pixels", Skewed)
    with pytest.raises(ExportError, match=r"was not published"):
        export_again(trained, "skewed")


@pytest.mark.slow
def test_a_run_is_exported_again_by_command(trained, tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    result, _, _ = trained
    copy = tmp_path / "copy"
    shutil.copytree(result.run, copy)
    Run.open(copy).update(temperature=1.5, threshold=0.9)  # as calibration leaves them
    arguments = ["--formats", "onnx", "--no-photos", "--exports", tmp_path / "again", "--json"]
    done = kresnet_command("export", copy, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["name"], answer["version"]) == ("stripes", 1)
    assert set(answer["formats"]) == {"saved_model", "model.onnx"}
    (version,) = list_versions(tmp_path / "again", "stripes")
    assert (version.contract.temperature, version.contract.threshold) == (1.5, 0.9)
    check = version.contract.formats["model.onnx"]
    assert check.images == 12
    assert check.accuracy == check.reference_accuracy == result.validation.accuracy
    assert check.bytes == (version.path / "model.onnx").stat().st_size
    digest = sha256((result.run / "model.weights.safetensors").read_bytes()).hexdigest()
    assert version.contract.weights_sha256 == digest
    assert Contract.load(result.export).weights_sha256 == digest
    assert golden.load(version.path)[0] == golden.drawn()  # no photo leaves the house
    assert golden.load(result.export)[0] != golden.drawn()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "A run is a directory that `kresnet train` has written."),
        (["runs/stripes", "--formats", "onxn"], "Received: 'onxn'"),
        (["runs/stripes", "--max-accuracy-loss", "-1"], "percentage points from 0 on"),
    ],
)
def test_mistakes_in_exporting_end_in_one_line(trained, failed, arguments, message):
    code, error = failed("export", *arguments, cwd=trained[1])
    assert code == 2
    assert message in error


def test_lost_images_and_unfinished_runs_are_not_exported(trained, tmp_path):
    result, _, _ = trained
    copy = tmp_path / "copy"
    shutil.copytree(result.run, copy)
    names = json.loads((copy / "classes.json").read_text())
    (copy / "classes.json").write_text(json.dumps(names | {"root": str(tmp_path / "moved")}))
    with pytest.raises(DataError, match=r"where they were in training. Received: .*moved.*png and"):
        export_run(copy, console=Console(quiet=True))
    Run.open(copy).update(status="created")
    with pytest.raises(ConfigError, match=r"Only a finished run.*kresnet resume"):
        export_run(copy, console=Console(quiet=True))


def weights_of(run):
    return load_file(Path(run) / "model.weights.safetensors")


class Stopping(Console):
    """Presses Ctrl-C when the status shows a given step."""

    def __init__(self, at):
        super().__init__(quiet=True)
        self._at = at

    def status(self, text, **_):
        if self._at and self._at in text:
            self._at = ""
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_weights_bit_for_bit(striped, tmp_path):
    settings = SETTINGS | {"epochs": 3, "drop_path_rate": 0.2, "drop_rate": 0.1}
    whole = fit(striped, tmp_path / "whole", **settings)
    with pytest.raises(
        Interrupted, match=r"epoch 2 of 3, and saved. Continue with: kresnet resume"
    ):
        kresnet.fit(
            striped,
            out=tmp_path / "runs",
            exports=tmp_path / "saved_models",
            console=Stopping("epoch 2/3  step 3/6"),
            **settings,
        )
    resumed = kresnet.resume(tmp_path / "runs" / "striped", console=Console(quiet=True))
    assert resumed.as_dict()["validation"] == whole.as_dict()["validation"]
    expected, found = weights_of(whole.run), weights_of(resumed.run)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(value, found[name]), name
    columns = [  # all but the times
        [",".join(line.split(",")[:5]) for line in (run / "metrics.csv").read_text().splitlines()]
        for run in (whole.run, resumed.run)
    ]
    assert columns[0] == columns[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_can_be_stopped_and_resumed(striped, tmp_path, kind):
    command = [
        sys.executable, "-m", "kresnet", "train", striped, "--variant", "resnet8_cifar",
        "--weights", "none", "--epochs", "30", "--batch-size", "6", "--val", "0.2", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    metrics = tmp_path / "runs" / "striped" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(kind)
    out, error = process.communicate(timeout=120)
    assert out == ""
    if kind == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 5
        assert error.splitlines()[-1].endswith("Continue with: kresnet resume runs/striped")
    run = Run.open(tmp_path / "runs" / "striped")
    assert run.recipe.epochs == 30
    done = kresnet_command("resume", "runs/striped", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= {"run", "export", "validation", "test", "probe", "seconds"}
    assert set(result["validation"]) >= {"accuracy", "n"}
    rows = metrics.read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 31))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "nowhere"], 3, "kresnet: The images must be in a folder. Received: source="),
        (["train", "one"], 3, "kresnet: There must be images of at least two classes."),
        (
            ["train", "two", "--variant", "resnet99"],
            2,
            "Unknown variant. Received: name='resnet99'",
        ),
        (["train", "two", "--weights", "no.pth"], 4, "path of a checkpoint file. Received: wei"),
        (["train", "two", "--weights", "cifar10"], 2, "cifar10"),
        (["train", "two", "--budget", "soon"], 2, "`--budget` must be a time above zero"),
        (["train", "two", "--name", "a/b"], 2, "`name` must be the plain name of a folder"),
        (["train", "two", "--lr", "-1"], 2, "`lr` is wrong"),
        (["train", "two", "--preset", "bst"], 2, "preset='bst'. Did you mean 'best'"),
        (["train"], 2, "There must be images or a recipe that names them."),
        (["train", "--recipe", "no.yaml"], 2, "A recipe must be a readable YAML file."),
        (["train", "two", "--weights", "none", "--epochs", "0"], 2, "nothing to keep before"),
        (["resume", "two"], 2, "A run is a directory that `kresnet train` has written."),
        (["predict", "two", "two"], 6, "An export is a folder NAME or NAME/VERSION"),
        (["predict", "two", "two/a/0.pnf"], 6, "An export is a folder"),
        (["trian", "two"], 2, "Did you mean 'train'"),
    ],
)
def test_mistakes_end_in_one_line_and_their_exit_code(failed, arguments, code, message, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one/a", "two/a", "two/b"):
        (tmp_path / name).mkdir(parents=True)
        for k in range(4):
            stripes(rng, k).save(tmp_path / name / f"{k}.png")
    found, error = failed(*arguments, cwd=tmp_path)
    assert found == code, error
    assert message in error


def test_another_backend_is_refused_in_one_line(tmp_path):
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = kresnet_command("train", "x", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr == (
        "kresnet: Training and export need the TensorFlow backend. "
        "Received: KERAS_BACKEND=jax. Unset it.\n"
    )


def test_a_diverging_loss_is_named(striped, tmp_path):
    with pytest.raises(ConfigError, match=r"loss must stay finite.*Lower --lr, which was 1e\+20"):
        fit(striped, tmp_path, epochs=3, lr=1e20, optimizer="sgd", clip_norm=None)


def test_a_stored_recipe_runs_again_on_the_same_images(trained, tmp_path, monkeypatch):
    result, _, _ = trained
    monkeypatch.setattr("kresnet.workflow.job._finish", lambda run, *_, **team: run)
    stored = Run.open(result.run)
    again = kresnet.fit(
        recipe=result.run / "recipe.yaml",
        out=tmp_path,
        exports=tmp_path,
        console=Console(quiet=True),
        lr=1e-3,
    )
    assert again.recipe == stored.recipe.model_copy(update={"lr": 1e-3})
    assert again.index.rows == stored.index.rows


def test_a_published_recipe_trains_random_weights(striped, tmp_path, monkeypatch):
    monkeypatch.setattr("kresnet.workflow.job._finish", lambda run, *_, **team: run)
    run = kresnet.fit(
        striped,
        variant="resnet8_cifar",
        preset="he-cifar",
        batch_size=16,
        out=tmp_path,
        exports=tmp_path,
        console=Console(quiet=True),
    )
    assert run.recipe.weights is None
    assert (run.recipe.schedule, run.recipe.drops) == ("steps", (0.5, 0.75))
    assert run.recipe.lr == pytest.approx(0.1 * 16 / 128)
    assert run.recipe.flip is False


def test_labels_of_two_lines_are_refused(trained):
    result, folder, _ = trained
    contract = Contract.load(result.export).model_copy(update={"classes": ("a\nb", "c")})
    with pytest.raises(ExportError, match=r"must be one line. Received: 'a\\nb'"):
        publish.export(None, contract, folder, samples=[])


def test_unknown_classes_are_named(trained, tmp_path):
    from kresnet.workflow import evaluate_export

    result, _, _ = trained
    rng = np.random.default_rng(0)
    for name in ("left red", "middle"):
        (tmp_path / name).mkdir()
        stripes(rng, 0).save(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=r"one of the export's 4. Received: 'middle'"):
        evaluate_export(result.export, tmp_path, console=Console(quiet=True))
