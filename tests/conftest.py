"""Settings and data that all tests share."""

import faulthandler
import gc
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

# Before TensorFlow is imported, by whichever test comes first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: one core each
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2] / "shared" / "data"
TOGETHER = ("e2e", "parity", "property")
SHARING = (
    "test_batch",
    "test_distribute",
    "test_export",
    "test_integers",
    "test_quick",
    "test_serve",
)
BEGUN = pytest.StashKey[float]()
SCREEN = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption(
        "--minutes",
        type=float,
        metavar="N",
        help="start no test after so long: those that are left are skipped, and counted",
    )
    parser.addoption(
        "--shuffle",
        metavar="SEED",
        help="an order of its own for each seed, so that --minutes does not always leave out the "
        "same tests",
    )


def pytest_configure(config):
    """Keep what tests cache out of the user's home; processes that they start inherit it."""
    config.stash[BEGUN] = time.monotonic()
    config.stash[SCREEN] = os.dup(2)  # what tests write is being kept from here on
    if "KRESNET_HOME" not in os.environ:
        home = os.environ["KRESNET_HOME"] = tempfile.mkdtemp(prefix="kresnet-tests-")
        config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))


def pytest_collection_modifyitems(config, items):
    """Give slow tests more time; shuffle if asked to, the hundreds of variants behind all else."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))
    seed = config.getoption("--shuffle")
    if seed is not None:
        place = {item: random.Random(f"{seed} {scope_of(item.nodeid)}").random() for item in items}
        items.sort(key=lambda item: ("tests/zoo" in item.nodeid, place[item]))


def pytest_collection_finish():
    """Take what the libraries loaded out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - item.config.stash[BEGUN] > 60 * minutes:
        pytest.skip("the time that --minutes gives was up")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """End the process of a test that hangs where its time limit cannot: in a library, or waiting
    for what never ends while it leaves. Its stack is shown, and the test is reported as failed."""
    own = item.get_closest_marker("timeout")
    limit = float(own.args[0] if own else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(limit + 30, exit=True, file=item.config.stash[SCREEN])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def scope_of(nodeid):
    """Name what stays on one process: tests that share a server, a browser or a trained model."""
    _, folder, file, *_ = nodeid.partition("::")[0].split("/")
    if folder == "browser":
        return folder
    shares = folder in TOGETHER or file.startswith(SHARING)
    return file if shares else nodeid


def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope_of(nodeid)

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def shared():
    """Real images and weights, kept beside the repository because they are not ours to publish."""
    if not SHARED.is_dir():
        pytest.skip("the real images and weights are not beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def torchvision_models():
    """torchvision.models, also where its compiled operators do not match the installed torch."""
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision.models")
    except RuntimeError:  # a wheel whose compiled operators are of another torch build
        with torch.library._scoped_library("torchvision", "FRAGMENT") as library:
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            return pytest.importorskip("torchvision.models")


def stripes(rng, label, size=40):
    """A noisy picture of slanted stripes; mirrored or turned it is of another class.

    The class is the direction of the slant (label // 2) and the colour (label % 2).
    """
    y, x = np.mgrid[:size, : size + 7]
    slant = x - y if label // 2 else x + y
    wave = 60 * np.sign(np.sin(2 * np.pi * (slant + rng.integers(12)) / 12))
    pixels = rng.integers(70, 130, (size, size + 7, 3)) + wave[..., np.newaxis]
    pixels[..., 2 * (label % 2)] += 60
    return Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))


STRIPES = ("left red", "left blue", "right red", "right blue")


@pytest.fixture(scope="session")
def striped(tmp_path_factory):
    """A folder of four classes with 12 images each that a small network learns in seconds.

    The class names keep the planner from mirroring: left and right matter here.
    """
    root = tmp_path_factory.mktemp("data") / "striped"
    rng = np.random.default_rng(7)
    for label, name in enumerate(STRIPES):
        folder = root / name
        folder.mkdir(parents=True)
        for k in range(12):
            stripes(rng, label).save(folder / f"{k}.png")
    return root


def randomize(model, seed=0):
    """Give every variable random values, statistics included, that keep activations in range.

    The branches of bottlenecks are damped: else errors of rounding double every few blocks.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        shape = tuple(variable.shape)
        if "seed" in variable.path:
            continue
        if variable.name == "kernel":
            value = rng.normal(size=shape) * np.sqrt(1.5 / np.prod(shape[:-1]))
        elif variable.name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(size=shape) * 0.2
        if variable.path.endswith(("conv3/gamma", "conv3_norm/gamma")):
            value = value * 0.3
        variable.assign(value.astype("float32"))
    return model


def relative_error(a, b):
    """Largest absolute difference, relative to the largest value."""
    a, b = np.asarray(a, dtype="float64"), np.asarray(b, dtype="float64")
    return float(np.abs(a - b).max() / np.abs(b).max())
