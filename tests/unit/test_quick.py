"""The quick answers are the SavedModel's, whatever computes them and whatever the file is."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small_export import CLASSES, picture, small_contract, small_model
from test_pixels import FILES

from kresnet.errors import ConfigError, DataError, ExportError, ResourceError
from kresnet.export.contract import TOLERANCE, Contract
from kresnet.export.publish import export
from kresnet.export.reference import Sample
from kresnet.serve import quick
from kresnet.serve.engine import Engine
from kresnet.serve.quick import QuickEngine, open_export

pytestmark = pytest.mark.slow  # they export, and start processes
RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files of every kind, one broken."""
    folder = tmp_path_factory.mktemp("images")
    for number, (name, contents) in enumerate(FILES.items()):
        (folder / f"{number:02d} {name.replace(':', '')}").write_bytes(contents)
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "turned.jpg").write_bytes(picture(3, 300, 200, "JPEG", exif=exif))
    (folder / "clear.png").write_bytes(picture(4, 90, 120, "PNG"))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """An export with both files, which were compared."""
    for name in ("tf2onnx", "onnx", *RUNTIMES):
        pytest.importorskip(name)
    root = tmp_path_factory.mktemp("quick")
    model = small_model()
    samples = []
    for k in range(6):
        path = root / f"{k}.png"
        path.write_bytes(picture(k, 40 + k, 50))
        samples.append(Sample(str(path)))
    contract = small_contract(model, threshold=0.5, mirrored=True)
    made = export(model, contract, root, samples=samples, formats=("onnx", "openvino"))
    return made.path


def scores(answer):
    return np.array([answer.scores[name] for name in CLASSES])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_answer_is_that_of_the_saved_model(directory, images, runtime, mirror):
    expected = Engine(directory).answer_files(images, mirror=mirror)
    done = []
    engine = open_export(directory, runtime)
    assert isinstance(engine, QuickEngine)
    found = engine.answer_files(images, mirror=mirror, progress=done.append)
    assert done == list(range(1, len(images) + 1))
    for path, one, other in zip(images, found, expected, strict=True):
        assert (one is None) == (other is None) == (path.name == "broken.jpg"), path
        if one is None:
            continue
        assert np.abs(scores(one) - scores(other)).max() <= TOLERANCE, path
        assert list(one.scores) == list(other.scores) == list(CLASSES)
        assert one.score == max(one.scores.values()) == one.scores[one.label]
        if abs(other.score - 0.5) > TOLERANCE:
            assert one.abstain == other.abstain
    answers = [answer for answer in found if answer]
    assert {answer.abstain for answer in answers} == {True, False}
    assert len({answer.label for answer in answers}) > 1


def test_the_first_that_is_there_and_installed_answers(directory, tmp_path, monkeypatch):
    copy = tmp_path / "1"
    shutil.copytree(directory, copy)

    monkeypatch.setattr(quick, "_onnx", lambda path: None)
    monkeypatch.setattr(quick, "_openvino", lambda path: None)
    assert open_export(copy).name == "onnxruntime: model.onnx"
    monkeypatch.setattr(quick, "find_spec", lambda name: name != "onnxruntime")
    assert open_export(copy).name == "openvino: openvino/model.xml"
    with pytest.raises(ResourceError, match=r"--runtime onnxruntime\. .*'kresnet\[onnx\]'"):
        open_export(copy, "onnxruntime")
    monkeypatch.setattr(quick, "find_spec", lambda name: None)
    called = []
    engine = open_export(copy, before_tensorflow=lambda: called.append(1))
    assert isinstance(engine, Engine)
    assert called == [1]
    assert isinstance(open_export(copy, "tensorflow"), Engine)


def changed(directory, copy, **fields):
    shutil.copytree(directory, copy)
    contract = Contract.load(copy)
    check = contract.formats["model.onnx"].model_copy(update=fields)
    formats = contract.formats | {"model.onnx": check}
    contract.model_copy(update={"formats": formats}).save(copy)
    return copy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_difference": 2e-4}, r"whose differs by 2\.0e-04"),
        ({"bytes": 7}, "whose is not the one that was compared"),
        ({"input": "prepared pixels"}, "whose takes prepared pixels"),
    ],
)
def test_a_file_that_did_not_agree_does_not_answer(directory, tmp_path, fields, message):
    copy = changed(directory, tmp_path / "1", **fields)
    assert open_export(copy).name == "openvino: openvino/model.xml"
    with pytest.raises(ExportError, match=message):
        open_export(copy, "onnxruntime")


def test_a_file_that_was_not_compared_or_is_gone_does_not_answer(directory, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(directory, copy)
    (copy / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"must hold model.onnx, compared .*, without one\."):
        open_export(copy, "onnxruntime")
    contract = Contract.load(copy)
    contract.model_copy(update={"formats": {}}).save(copy)
    assert isinstance(open_export(copy), Engine)
    with pytest.raises(ExportError, match=r"must hold openvino/model.xml"):
        open_export(copy, "openvino")


def test_a_damaged_file_is_told(directory, tmp_path):
    copy = tmp_path / "1"
    shutil.copytree(directory, copy)
    file = copy / "model.onnx"
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(ExportError, match=r"must load in its runtime.*--runtime tensorflow"):
        open_export(copy)


def test_other_runtimes_and_files_are_refused(directory, tmp_path):
    with pytest.raises(ConfigError, match=r"one of auto, tensorflow.*Received: 'onnx'"):
        open_export(directory, "onnx")
    with pytest.raises(DataError, match=r"must be a readable file. Received: .*absent"):
        open_export(directory).answer_files([tmp_path / "absent"])


def predict(directory, *arguments, check=None):
    """What the command prints, and which large libraries it loaded."""
    code = (
        "import sys\nsys.argv = ['kresnet', 'predict', *sys.argv[1:], '--json']\n"
        "from kresnet.cli import main\n"
        "try:\n    main()\nfinally:\n    loaded = {n.split('.')[0] for n in sys.modules}\n"
        "    print(*sorted(loaded & {'tensorflow', 'keras', 'onnxruntime'}), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(directory), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *told, loaded = done.stderr.splitlines()
    return done.returncode, json.loads(done.stdout), loaded.split(), told


def test_the_command_loads_tensorflow_only_where_it_must(directory, images, tmp_path):
    usual = [path for path in images if path.name in ("turned.jpg", "clear.png")]
    code, answers, loaded, told = predict(directory, *usual)
    assert (code, loaded, told) == (0, ["onnxruntime"], [])
    expected = Engine(directory).answer_files(usual)
    for one, other in zip(answers, expected, strict=True):
        assert (one["label"], one["abstain"]) == (other.label, other.abstain)
        assert one["scores"] == pytest.approx(other.scores, abs=TOLERANCE)
    odd = tmp_path / "animated.webp"
    odd.write_bytes(FILES["webp animated"])
    code, (answer,), loaded, told = predict(directory, odd)
    assert (code, told) == (0, [])
    assert "tensorflow" in loaded
    (wanted,) = Engine(directory).answer_files([odd])
    assert answer["scores"] == pytest.approx(wanted.scores, abs=TOLERANCE)
    code, (answer,), loaded, _ = predict(directory, usual[0], "--runtime", "tensorflow")
    assert "tensorflow" in loaded
    assert "onnxruntime" not in loaded
