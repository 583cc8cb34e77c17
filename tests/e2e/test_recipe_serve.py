"""The lines of recipes/serve_tf_serving.md do what it says, as they stand there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml

pytest.importorskip("tensorflow_serving", reason="the extra `serve` is not installed")

import serving

from kresnet.serve.kit import FILES

RECIPE = Path(__file__).parents[2] / "recipes" / "serve_tf_serving.md"


def blocks(language):
    """The code blocks of a language, in order."""
    text = RECIPE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in: an export `flowers` and some photos."""
    folder = tmp_path_factory.mktemp("work")
    serving.write_export(folder / "saved_models" / "flowers" / "1", threshold=0.3)
    photos = serving.photos(np.random.default_rng(0), 4)
    names = ["photo.jpg", "two words.jpg", "third.jpg", "no image.jpg"]
    for name, content in zip(names, [*photos[:3], b"no image"], strict=True):
        (folder / name).write_bytes(content)
    return folder, names


@pytest.fixture(scope="module")
def expected(folder):
    folder, names = folder
    export = tf.saved_model.load(str(folder / "saved_models" / "flowers" / "1"))
    contents = tf.constant([(folder / name).read_bytes() for name in names])
    return {
        name: value.numpy()
        for name, value in export.signatures["serving_bytes"](image_bytes=contents).items()
    }


@pytest.fixture(scope="module")
def server(folder):
    home = folder[0] / "saved_models" / "flowers"
    with serving.running(home, "--runtime", "tensorflow") as running:
        yield running


def here(code, server):
    """The code with the addresses of this server; nothing else is changed."""
    assert "127.0.0.1:850" in code
    return code.replace("http://127.0.0.1:8501", server.url).replace("127.0.0.1:8500", server.grpc)


def test_four_commands_lead_to_a_container(folder, server):
    train, print_config, compose, ask = blocks("")[0].splitlines()
    assert train == "kresnet train photos --name flowers"
    arguments = print_config.split()
    assert arguments[0] == "kresnet"
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder[0],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [f"serving/{name}" for name in FILES]
    assert compose.split()[3] == arguments[-1]
    (source, _) = yaml.safe_load((folder[0] / "serving" / "docker-compose.yaml").read_text())[
        "services"
    ]["serving"]["volumes"]
    assert (Path(source["source"]) / "1" / "saved_model.pb").is_file()
    done = subprocess.run(
        ["sh", "-c", here(ask, server)], capture_output=True, text=True, check=True
    )
    assert "serving_bytes" in json.loads(done.stdout)["metadata"]["signature_def"]["signature_def"]


def test_the_curl_lines_answer(folder, server, expected):
    (code,) = blocks("sh")
    done = subprocess.run(
        ["sh", "-c", here(code, server)], cwd=folder[0], capture_output=True, text=True, check=True
    )
    (answer,) = json.loads(done.stdout)["predictions"]
    assert answer["label"] == expected["label"][0].decode()
    np.testing.assert_allclose(answer["scores"], expected["scores"][0], atol=1e-6)


@pytest.mark.parametrize("which", [0, 1], ids=["REST", "gRPC"])
def test_the_python_clients_answer(folder, server, expected, which):
    folder, names = folder
    code = here(blocks("python")[which], server)
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wanted = [
        f"{name}\t{'not sure' if abstain else label.decode()}\t{score:.4f}"
        for name, label, score, abstain in zip(
            names, expected["label"], expected["score"], expected["abstain"], strict=True
        )
    ]
    assert done.stdout.splitlines() == wanted
    assert wanted[3] == "no image.jpg\tnot sure\t0.0000"
    assert not expected["abstain"][:3].all()
