"""Reading checkpoint files: equal to torch, and safe against hostile ones."""

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from conftest import SHARED
from safetensors.numpy import save_file

from kresnet.errors import WeightsError
from kresnet.zoo.checkpoint import read_checkpoint, read_positions

# TensorFlow 2.21's arrays do not know NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DATA = SHARED / "weights"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real weights are not beside the repo"
)


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        assert str(found[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found[name].astype("float64"), tensor.double().numpy())


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes the files to be read")

    def write(value, **options):
        path = tmp_path / "weights"
        torch.save(value, path, _use_new_zipfile_serialization=request.param, **options)
        return path

    return write


def test_torch_dtypes(save):
    import torch

    names = (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
    )
    tensors = {n: (torch.randn(3, 5) * 50).abs().to(getattr(torch, n)) for n in names}
    tensors["bool"] = torch.tensor([True, False])
    assert_same(read_checkpoint(save(tensors)), tensors)


def test_torch_views(save):
    import torch

    base = torch.randn(4, 6, 5)
    tensors = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "strided": base[1:, ::2, 3:],
        "same again": base,
        "scalar": torch.tensor(7),
        "element": base[2, 3, 1],
        "empty": torch.zeros(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    assert_same(read_checkpoint(save(tensors)), {k: v.detach() for k, v in tensors.items()})


def test_torch_state_dict_of_a_module(save):
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    assert_same(read_checkpoint(save(module.state_dict())), module.state_dict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_pickle_protocols(save, protocol):
    import torch

    tensors = OrderedDict(a=torch.randn(300), b=torch.randn(2, 2))
    assert_same(read_checkpoint(save(tensors, pickle_protocol=protocol)), tensors)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema", "model_ema"])
def test_training_checkpoint_is_unwrapped(save, wrapper):
    import torch

    weights = {"conv1.weight": torch.randn(2, 3), "bn1.bias": torch.randn(2)}
    training = {
        wrapper: {f"module.{name}": tensor for name, tensor in weights.items()},
        "epoch": 3,
        "lr": 0.1,
        "best": None,
        "shape": torch.Size([2, 3]),
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(2)}}, "groups": [(1, 2)]},
    }
    assert_same(read_checkpoint(save(training)), weights)


def test_averaged_weights_are_preferred(save):
    import torch

    model, ema = {"a": torch.zeros(2)}, {"n_averaged": torch.tensor(9), "module.a": torch.ones(2)}
    assert_same(read_checkpoint(save({"model": model, "model_ema": ema})), {"a": torch.ones(2)})


def test_module_prefix_stays_unless_all_have_it(save):
    import torch

    tensors = {"module.a": torch.ones(2), "b": torch.ones(2)}
    assert_same(read_checkpoint(save(tensors)), tensors)


class Attack:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (lambda path: Attack(os.system, f"touch {path}"), ".system"),
        (lambda path: Attack(eval, f"open({str(path)!r}, 'w')"), ".eval"),
        (lambda path: Attack(getattr, 1, "real"), ".getattr"),
        (lambda path: Path(path), "pathlib"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_named_and_not_run(save, tmp_path, attack, named, protocol):
    import torch

    path = save({"a": torch.ones(2), "b": attack(tmp_path / "owned")}, pickle_protocol=protocol)
    with pytest.raises(WeightsError, match=r"whose pickle names .*safetensors") as error:
        read_checkpoint(path)
    assert named in str(error.value)
    assert not (tmp_path / "owned").exists()


def torch_zip(path, program, **data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, value in data.items():
            archive.writestr(f"archive/data/{key.removeprefix('k')}", value)
    return path


def tensor_program(
    offset=0, shape=(2, 3), strides=(3, 1), count=6, kind="torch\nFloatStorage", extra=()
):
    """The pickle {"a": tensor}, with whatever numbers a liar would write."""
    out = io.BytesIO()

    def put(value):
        out.write(pickletools.optimize(pickle.dumps(value, 2))[2:-1])

    out.write(b"\x80\x02}")
    put("a")
    out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
    put("storage")
    out.write(b"c" + kind.encode() + b"\n")
    for value in ("0", "cpu", count):
        put(value)
    out.write(b"tQ")
    for value in (offset, shape, strides, False, {}, *extra):
        put(value)
    out.write(b"tRs.")
    pickletools.dis(out.getvalue(), io.StringIO())  # it is a well-formed pickle
    return out.getvalue()


SIX = struct.pack("<6f", *range(6))


def test_hand_written_zip_is_read(tmp_path):
    found = read_checkpoint(torch_zip(tmp_path / "w", tensor_program(), k0=SIX))
    np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"offset": 1}, "reaches outside"),
        ({"offset": -1}, "impossible shape"),
        ({"shape": (2, 4)}, "reaches outside"),
        ({"shape": (10**30, 3)}, "reaches outside"),
        ({"shape": (10**12,), "strides": (0,)}, "reaches outside"),
        ({"shape": (-2, 3)}, "impossible shape"),
        ({"strides": (-3, 1)}, "impossible shape"),
        ({"strides": (3,)}, "impossible shape"),
        ({"strides": (10**30, 1)}, "reaches outside"),
        ({"shape": "ab"}, "not made of integers"),
        ({"offset": "0"}, "without a storage"),
        ({"count": 7}, "shorter than claimed"),
        ({"count": 10**30}, "shorter than claimed"),
        ({"count": -1}, "impossible shape"),
        ({"count": "6"}, "unknown reference"),
        ({"extra": ({"neg": True},)}, "negated"),
    ],
)
def test_a_lying_tensor_is_refused(tmp_path, lie, reason):
    path = torch_zip(tmp_path / "w", tensor_program(**lie), k0=SIX)
    with pytest.raises(WeightsError, match=f"must be whole and hold arrays by name.*{reason}"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x02}.", "no tensors by name"),
        (b"\x80\x02N.", "no tensors by name"),
        (b"\x80\x02}", "exhausted"),
        (b"\x80\x02u.", "IndexError"),
        (b"\x80\x02(.", "no tensors by name"),
        (b"\x80\x02h\x05.", "KeyError"),
        (b"\x80\x02}}NQ.", "unknown reference"),
        (b"\x80\x02}}Ns.", "dictionary key of type dict"),
        (b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns.", "dictionary key of type tuple"),
        (b"\x80\x02]K\x01K\x02s.", "a list where a dict"),
        (b"\x80\x02NNR.", "NoneType where a tuple"),
        (b"\x80\x02N)R.", "NoneType where a _Global"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "KeyError"),
        (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "instruction NEWOBJ"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02(iposix\nsystem\n.", "instruction INST"),
        (b"\xff\xff\xff", "ValueError"),
        (b"", "exhausted"),
    ],
)
def test_a_broken_pickle_is_refused(tmp_path, program, reason):
    path = torch_zip(tmp_path / "w", program)
    with pytest.raises(WeightsError, match=f"must be whole.*{reason}"):
        read_checkpoint(path)


def test_unknown_storage_type_is_named(tmp_path):
    path = torch_zip(tmp_path / "w", tensor_program(kind="torch\nQInt8Storage"), k0=SIX)
    with pytest.raises(WeightsError, match=r"names 'torch\.QInt8Storage'"):
        read_checkpoint(path)


def test_build_sets_no_attributes(tmp_path):
    build = tensor_program()[:-1] + b"}" + b"X\x05\x00\x00\x00items" + b"K\x01sb."
    found = read_checkpoint(torch_zip(tmp_path / "w", build, k0=SIX))
    assert found["a"].shape == (2, 3)


def test_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_program(count=250_000))
        archive.writestr("archive/data/0", bytes(1_000_000))
    with pytest.raises(WeightsError, match="claim more bytes than the file has"):
        read_checkpoint(tmp_path / "w")


def test_big_endian_files_are_refused(tmp_path):
    torch_zip(tmp_path / "w", tensor_program(), k0=SIX)
    with zipfile.ZipFile(tmp_path / "w", "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(WeightsError, match="not little-endian"):
        read_checkpoint(tmp_path / "w")


def test_big_endian_legacy_files_are_refused(tmp_path):
    magic = 0x1950A86A20F9469CFC6C
    (tmp_path / "w").write_bytes(b"".join(pickle.dumps(v, 2) for v in (magic, 1001, {})))
    with pytest.raises(WeightsError, match="not little-endian"):
        read_checkpoint(tmp_path / "w")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.9, 0.999])
def test_truncated_torch_files_are_refused(save, part):
    import torch

    path = save({f"layer{i}.weight": torch.randn(40, 9) for i in range(5)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(WeightsError, match="must be whole and hold arrays by name"):
        read_checkpoint(path)


def test_safetensors(tmp_path):
    arrays = {
        "a": np.random.default_rng(0).normal(size=(2, 3)).astype("float32"),
        "b": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "c": np.array(3, "int64"),
    }
    save_file(arrays, tmp_path / "w")
    found = read_checkpoint(tmp_path / "w")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-3])
    with pytest.raises(WeightsError, match="must be whole"):
        read_checkpoint(tmp_path / "w")


def test_npz(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 3))
    np.savez_compressed(tmp_path / "w.npz", **{"module.a/kernel": array})
    found = read_checkpoint(str(tmp_path / "w.npz"))
    np.testing.assert_array_equal(found["a/kernel"], array)


def test_npz_never_unpickles(tmp_path):
    attack = np.array([Attack(os.system, f"touch {tmp_path / 'owned'}")], object)
    np.savez(tmp_path / "w.npz", a=attack)
    with pytest.raises(WeightsError, match="allow_pickle=False"):
        read_checkpoint(tmp_path / "w.npz")
    assert not (tmp_path / "owned").exists()


def write_npz(path, header, data=b"", dtype="<f4"):
    """An npz whose one array says of itself whatever it likes."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {header}, }}"
    text = text.ljust(117) + "\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy)
    return path


def test_hand_written_npz_is_read(tmp_path):
    found = read_checkpoint(write_npz(tmp_path / "w.npz", "(2, 3)", SIX))
    np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ("(10**12, 3)", "<f4", "ValueError"),
        ("(1000000000000, 3)", "<f4", "claims more numbers than it has"),
        ("(2, 4)", "<f4", "claims more numbers than it has"),
        ("(-2, 3)", "<f4", "claims more numbers than it has"),
        ("(6,)", "<f8", "claims more numbers than it has"),
        ("(2,)", "|O", "allow_pickle=False"),
        ("'ab'", "<f4", "ValueError"),
    ],
)
def test_a_lying_npz_is_refused_before_it_is_allocated(tmp_path, shape, dtype, reason):
    with pytest.raises(WeightsError, match=f"must be whole.*{reason}"):
        read_checkpoint(write_npz(tmp_path / "w.npz", shape, SIX, dtype))


def test_an_npz_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("../../readme.txt", "no array")
    with pytest.raises(WeightsError, match=r"must be whole.*magic string"):
        read_checkpoint(tmp_path / "w.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 24]}}',
        b'{"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 4000000000000]}}',
        b'{"a": {"dtype": "F32", "shape": [6], "data_offsets": [24, 0]}}',
        b'{"a": {"dtype": "X", "shape": [6], "data_offsets": [0, 24]}}',
        b'{"a": ' * 5000,
    ],
)
def test_a_lying_safetensors_file_is_refused(tmp_path, header):
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + SIX)
    with pytest.raises(WeightsError, match=r"must be whole.*SafetensorError"):
        read_checkpoint(tmp_path / "w")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["npz", "safetensors", "torch", "legacy"])
def test_damage_is_reported_or_harmless(tmp_path, kind, seed):
    """Cut and changed files: an error of ours, or arrays; nothing else."""
    arrays = {f"layer{i}/kernel": np.arange(40.0, dtype="f4") + i for i in range(3)}
    path = tmp_path / "w"
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **arrays)
    elif kind == "safetensors":
        save_file(arrays, path)
    else:
        torch = pytest.importorskip("torch")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "torch")
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for _ in range(60):
        broken = data[: rng.integers(len(data))] if rng.random() < 0.3 else data.copy()
        for place in rng.integers(len(broken), size=rng.integers(4)) if broken else ():
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        try:
            found = read_checkpoint(path)
        except WeightsError:
            continue
        assert sum(array.nbytes for array in found.values()) <= len(data)


def test_npz_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kresnet.zoo.checkpoint._ALWAYS_ALLOWED_BYTES", 1000)
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(1_000_000))
    with pytest.raises(WeightsError, match="claims 8000128 bytes of arrays, far more"):
        read_checkpoint(tmp_path / "w.npz")


def write_h5(path, root="/", names=("c/kernel:0", "c/bias:0"), layer="c", chunked=False):
    with h5py.File(path, "w") as file:
        group = file.require_group(root)
        if chunked:
            group.attrs["layer_names0"], group.attrs["layer_names1"] = [b"x"], [layer.encode()]
            group.create_group("x").attrs["weight_names"] = []
        else:
            group.attrs["layer_names"] = [layer.encode()]
        inner = group.create_group(layer)
        inner.attrs["weight_names"] = [name.encode() for name in names]
        for number, name in enumerate(names):
            inner[name] = np.full((2, number + 1), number, "float32")
    return path


@pytest.mark.parametrize("root", ["/", "model_weights"])
@pytest.mark.parametrize("chunked", [False, True])
def test_h5(tmp_path, root, chunked):
    found = read_checkpoint(write_h5(tmp_path / "w", root, chunked=chunked))
    assert {name: array.shape for name, array in found.items()} == {
        "c/kernel": (2, 1),
        "c/bias": (2, 2),
    }


def test_h5_of_a_nested_model_names_its_inner_layers(tmp_path):
    names = ("conv1_conv/kernel:0", "base/conv2_conv/kernel:0")
    found = read_checkpoint(write_h5(tmp_path / "w", names=names, layer="base"))
    assert sorted(found) == ["conv1_conv/kernel", "conv2_conv/kernel"]


def test_h5_of_inner_layers_of_one_name_has_whole_paths(tmp_path):
    names = ("unit01/a/norm/gamma:0", "unit01/b/norm/gamma:0")
    found = read_checkpoint(write_h5(tmp_path / "w", names=names, layer="block1"))
    assert sorted(found) == ["block1/unit01/a/norm/gamma", "block1/unit01/b/norm/gamma"]


def test_h5_with_two_arrays_of_one_name_is_refused(tmp_path):
    names = ("c/kernel", "c/kernel:0")
    with pytest.raises(WeightsError, match="two arrays of the name 'c/kernel'"):
        read_checkpoint(write_h5(tmp_path / "w", names=names))


def replace_kernel(path, change):
    write_h5(path)
    with h5py.File(path, "a") as file:
        del file["c/c/kernel:0"]
        change(file)
    return path


def external_dataset(file, tmp_path):
    (tmp_path / "secret").write_bytes(b"password")
    source = [(str(tmp_path / "secret"), 0, 8)]
    file.create_dataset("c/c/kernel:0", shape=(8,), dtype="u1", external=source)


def virtual_dataset(file, tmp_path):
    layout = h5py.VirtualLayout(shape=(8,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", shape=(8,))
    file.create_virtual_dataset("c/c/kernel:0", layout)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f, d: None, "is missing"),
        (lambda f, d: f.__setitem__("c/c/kernel:0", h5py.SoftLink("/c/c/bias:0")), "is a link"),
        (lambda f, d: f.__setitem__("c/c/kernel:0", h5py.ExternalLink("o.h5", "/a")), "is a link"),
        (external_dataset, "is in another file"),
        (virtual_dataset, "is in another file"),
        (lambda f, d: f.create_group("c/c/kernel:0"), "no array of numbers"),
        (lambda f, d: f.__setitem__("c/c/kernel:0", "text"), "no array of numbers"),
        (
            lambda f, d: f.create_dataset("c/c/kernel:0", (8,), "f4", chunks=(8,), scaleoffset=2),
            "compressed in an unusual way",
        ),
        (
            lambda f, d: f.create_dataset("c/c/kernel:0", (10**9, 10**9), "f4", chunks=(1, 1)),
            "far more than it can hold",
        ),
    ],
)
def test_hostile_h5_is_refused(tmp_path, change, reason):
    path = replace_kernel(tmp_path / "w", lambda file: change(file, tmp_path))
    with pytest.raises(WeightsError, match=f"must be whole.*{reason}"):
        read_checkpoint(path)


def test_h5_group_behind_an_external_link_is_refused(tmp_path):
    with h5py.File(tmp_path / "w", "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    with pytest.raises(WeightsError, match="'model_weights' is a link"):
        read_checkpoint(tmp_path / "w")


def test_h5_without_names_is_refused(tmp_path):
    with h5py.File(tmp_path / "w", "w") as file:
        file["a"] = np.ones(3)
    with pytest.raises(WeightsError, match="holds no arrays by name"):
        read_checkpoint(tmp_path / "w")


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated_h5_is_refused(tmp_path, part):
    for path, read in (
        (write_h5(tmp_path / "w"), read_checkpoint),
        (write_positions(tmp_path / "p"), read_positions),
    ):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        with pytest.raises(WeightsError, match="must be whole"):
            read(path)


def write_positions(path, layer="conv2d_3", name="c"):
    with h5py.File(path, "w") as file:
        variables = file.create_group(f"layers/{layer}/vars")
        if name:
            variables.attrs["name"] = name
        for number in range(2):
            variables[str(number)] = np.full((2, number + 1), number, "float32")
        file.create_group("layers/relu/vars").attrs["name"] = "relu"
        file.create_group("layers/nested/layers")
    return path


@pytest.mark.parametrize("name", ["c", None])
def test_positions(tmp_path, name):
    found = read_positions(write_positions(tmp_path / "w", name=name))
    assert list(found) == ["conv2d_3"]
    assert found["conv2d_3"].name == name
    assert [array.shape for array in found["conv2d_3"].arrays] == [(2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("layers/conv2d_3/vars/1", h5py.ExternalLink("other.h5", "/a"), "is a link"),
        ("layers/conv2d_3/vars", h5py.SoftLink("/layers/relu/vars"), "is a link"),
        ("layers/conv2d_3", h5py.ExternalLink("other.h5", "/a"), "is a link"),
        ("layers", h5py.ExternalLink("other.h5", "/a"), "is a link"),
        ("layers/conv2d_3/vars/1", "text", "no array of numbers"),
        ("layers/conv2d_3/vars/1", None, "'1' is missing"),
    ],
)
def test_hostile_positions_are_refused(tmp_path, place, value, reason):
    path = write_positions(tmp_path / "w")
    with h5py.File(path, "a") as file:
        del file[place]
        file[place if value is not None else f"{place}0"] = 0 if value is None else value
    with pytest.raises(WeightsError, match=f"must be whole.*{reason}"):
        read_positions(path)


@pytest.mark.parametrize("name", ["w.weights.h5", "w.keras"])
def test_keras_files_by_position_are_refused_with_the_way_out(tmp_path, name):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
    if name == "w.keras":
        model.save(tmp_path / name)
    else:
        model.save_weights(tmp_path / name)
    with pytest.raises(WeightsError, match=r"by position.*model.save\('weights.h5'\)"):
        read_checkpoint(tmp_path / name)
    model.save(tmp_path / "weights.h5")  # what the message advises
    assert sorted(read_checkpoint(tmp_path / "weights.h5")) == ["d/bias", "d/kernel"]


def test_a_path_that_is_no_file(tmp_path):
    with pytest.raises(WeightsError, match=r"must be a file\. Received: .*which is nothing"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match=r"must be a file\. Received: .*which is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", pickle.dumps({"a": 1}), b"\xff" * 40])
def test_unknown_content(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="must be a torch, safetensors, npz or Keras") as e:
        read_checkpoint(tmp_path / "w.pth")
    assert "\n" not in str(e.value)


@needs_data
@pytest.mark.parametrize("path", sorted(DATA.glob("cifar10/*.th")), ids=lambda path: path.name)
def test_real_legacy_files_equal_torch(path):
    torch = pytest.importorskip("torch")
    expected = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    expected = {name.removeprefix("module."): tensor for name, tensor in expected.items()}
    assert_same(read_checkpoint(path), expected)


@needs_data
def test_real_npz():
    (path,) = DATA.glob("resnet50_imagenet/*.npz")
    arrays = read_checkpoint(path)
    assert len(arrays) == 108
    assert arrays["layer4.0.downsample.0.weight"].shape == (2048, 1024, 1, 1)


@needs_data
def test_real_h5():
    (path,) = DATA.glob("resnet8_cifar10_keras_h5/*.h5")
    arrays = read_checkpoint(path)
    assert arrays["conv2d/kernel"].shape == (3, 3, 3, 16)
    assert arrays["batch_normalization/moving_variance"].shape == (16,)
