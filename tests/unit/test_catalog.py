"""The catalogue of models, and the commands that show it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kresnet.cli import app
from kresnet.errors import ConfigError
from kresnet.zoo import catalog, download
from kresnet.zoo.cards import CARDS
from kresnet.zoo.catalog import as_markdown, as_table, as_text, describe, list_models, published
from kresnet.zoo.variants import VARIANTS

README = Path(catalog.__file__).with_name("README.md")


def run(*arguments):
    return CliRunner().invoke(app, ["zoo", *arguments])


# --- searching


def test_everything_is_listed_once():
    entries = list_models()
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    assert {entry.variant for entry in entries} == set(VARIANTS)
    assert {entry.name for entry in entries if entry.tag} == set(CARDS)
    bare = [entry for entry in entries if entry.tag is None]
    assert "resnet200" in {entry.name for entry in bare}
    assert {(entry.top1, entry.license) for entry in bare} == {(None, None)}


def test_the_query_of_the_readme():
    entries = list_models(params="<30e6", top1=">80", license="apache-2.0")
    assert "resnet50.a1_in1k" in {entry.name for entry in entries}
    expected = {
        name
        for name, card in CARDS.items()
        if card.license == "Apache-2.0"
        and card.top1 is not None
        and card.top1 > 80
        and catalog.measure(VARIANTS[card.variant], num_classes=card.num_classes).params < 30e6
    }
    assert {entry.name for entry in entries} == expected
    assert len(expected) > 20


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("<25557032", False),
        ("<=25557032", True),
        ("=25557032", True),
        ("==25_557_032", True),
        (">=25557032", True),
        (">25557032", False),
        ("<25.6M", True),
        (" < 25.5 m ", False),
        (">25557k", True),
        ("<.03G", True),
        ("<2.6e7", True),
        ("<3e1M", True),
    ],
)
def test_comparisons(text, holds):
    assert bool(list_models("resnet50.tv_in1k", params=text)) == holds


@pytest.mark.parametrize(
    ("field", "text", "fix"),
    [
        ("params", "30e6", "Write '<30e6', in quotes."),
        ("params", "30M", "Write '<30m', in quotes."),
        ("params", "", "Write '<30e6', in quotes."),
        ("params", "<", "Write '<30e6', in quotes."),
        ("params", "<few", "Write '<30e6', in quotes."),
        ("macs", "!=5G", "Write '<5g', in quotes."),
        ("top1", "80", "Write '>80', in quotes."),
        ("top1", "over ninety", "Write '>80', in quotes."),
        ("top1", ">80%", "Write '>80', in quotes."),
    ],
)
def test_a_comparison_that_cannot_be_read(field, text, fix):
    with pytest.raises(ConfigError) as error:
        list_models(**{field: text})
    assert str(error.value) == (
        f"`{field}` must be <, <=, =, >= or > and a number. Received: {field}={text!r}. {fix}"
    )
    sign, number = fix.split("'")[1][0], fix.split("'")[1][1:]
    list_models("resnet50.tv_in1k", **{field: sign + number})  # the fix can be read


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("apache", "Did you mean 'Apache-2.0'?"),
        (
            "mpl",
            "There are Apache-2.0, BSD-2-Clause, BSD-3-Clause, CC-BY-NC-4.0, MIT, unknown.",
        ),
    ],
)
def test_a_licence_that_there_is_not(text, hint):
    with pytest.raises(ConfigError) as error:
        list_models(license=text)
    assert str(error.value) == f"No weights have that licence. Received: license={text!r}. {hint}"


def test_sorting():
    with pytest.raises(ConfigError, match=r"`sort` must be one of 'name', .* Received: sort='x'\."):
        list_models(sort="x")
    assert [e.name for e in list_models("resnet18.")] == sorted(
        e.name for e in list_models("resnet18.")
    )
    params = [entry.params for entry in list_models(sort="params")]
    assert params == sorted(params)
    macs = [entry.macs for entry in list_models(sort="macs")]
    assert macs == sorted(macs)
    best = list_models(sort="top1")
    assert best[0].name == "seresnextaa201d_32x8d.sw_in12k_ft_in1k_384"
    scores = [entry.top1 or 0 for entry in best if entry.data == "imagenet"]
    assert scores == sorted(scores, reverse=True)
    data = [entry.data for entry in best]  # accuracies of two data sets are not compared
    assert data == sorted(data, key=["imagenet", "imagenet-12k", "imagenet-21k", "cifar10"].index)


def test_patterns():
    assert {e.variant for e in list_models("SERESNEXT26")} == {
        "seresnext26d_32x4d",
        "seresnext26t_32x4d",
    }
    assert {e.tag for e in list_models("a1h_in1k")} == {"a1h_in1k"}
    assert list_models("no such") == []


def test_the_head_counts():
    one, two = (
        next(e for e in list_models(f"resnetv2_50x1_bit.{tag}") if e.tag == tag)
        for tag in ("goog_in21k", "goog_in21k_ft_in1k")
    )
    assert one.params - two.params == (21843 - 1000) * 2049
    assert (one.data, two.data) == ("imagenet-21k", "imagenet")


def test_no_file_is_larger_than_a_download_may_be():
    for entry in list_models():
        assert 4 * entry.params * 1.05 < download.MAX_BYTES


# --- showing


def test_the_table():
    header, *lines = as_table(list_models("resnet50.")).splitlines()
    assert header.split() == [
        "name", "params", "GMACs", "data", "px", "top-1", "top-5", "licence",
    ]  # fmt: skip
    assert len(lines) == 18 + 4  # and those of seresnet50
    assert lines[0].split() == [
        "resnet50.a1_in1k", "25.56M", "4.09", "imagenet", "224", "80.38", "94.60", "Apache-2.0",
    ]  # fmt: skip
    marked = [line.split()[0] for line in lines if line.endswith("CC-BY-NC-4.0 (non-commercial)")]
    assert marked == ["resnet50.fb_ssl_yfcc100m_ft_in1k", "resnet50.fb_swsl_ig1b_ft_in1k"]
    assert len({line.index("imagenet") for line in lines}) == 1  # columns are aligned
    assert as_table(list_models("resnet200", macs="<15.1G")).split()[8:] == [
        "resnet200", "64.67M", "15.01", "imagenet", "224", "-", "-", "-",
    ]  # fmt: skip


def test_the_text_of_a_card():
    text = as_text("resnet50.a1_in1k")
    for line in (
        "parameters  25,557,032",
        "MACs        4,089,184,256 at 224 px",
        "features    256, 512, 1024, 2048",
        "licence     Apache-2.0",
        "classes     1000 (imagenet)",
        "trained at  224 px",
        "evaluation  top-1 80.38, top-5 94.60 at 224 px, crop 0.95, 4.09 GMACs",
        "            top-1 81.24, top-5 95.11 at 288 px, crop 1",
        "source      timm results-imagenet.csv at aa4b585",
        "resize      bicubic, antialiased, then a centre crop",
        "input       RGB, (pixels / 255 - mean) / std",
        "mean        0.485, 0.456, 0.406",
        "std         0.229, 0.224, 0.225",
        "file        resnet50.a1_in1k.pth",
        "checksum    sha256:14fe96d1",
    ):
        assert line in text.splitlines()
    assert text.endswith('\n\nimport kresnet\nmodel = kresnet.build("resnet50.a1_in1k")')
    assert "checksum    announced by the host" in as_text("resnet18d.ra4_e3600_r224_in1k")
    assert "trained at  not published" in as_text("resnetv2_50x1_bit.goog_in21k_ft_in1k")


def test_the_text_of_a_variant():
    text = as_text("resnet34")
    assert "weights     tv_in1k                    73.31 at 224 px  BSD-3-Clause" in text
    assert text.endswith('model = kresnet.build("resnet34.tv_in1k")')
    bare = as_text("plain20_cifar").splitlines()
    assert "features    16, 32, 64" in bare
    assert "weights     -" in bare
    assert bare[-1] == 'model = kresnet.build("plain20_cifar")'


@pytest.mark.parametrize("name", [*VARIANTS, *CARDS])
def test_everything_can_be_described(name):
    facts = describe(name)
    assert facts == json.loads(json.dumps(facts, default=list)) | {
        key: facts[key] for key in ("weights",) if key in facts
    }
    assert facts["name"] == name
    assert facts["features"][-1] == VARIANTS[facts["variant"]].num_features
    assert len(facts["features"]) == len(VARIANTS[facts["variant"]].depths)
    if "." in name:
        assert facts["weights"]["tag"] == CARDS[name].tag
        assert facts["weights"]["file_name"] == CARDS[name].file_name
        assert facts["weights"]["preprocessing"]["mean"] == CARDS[name].preprocessing.mean
    assert name in as_text(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O.a1_in1k", "Unknown variant. Received: name='resnet5O'."),
        (
            "resnet50.a1_in2k",
            "No such weights are published. Received: variant='resnet50', weights='a1_in2k'. "
            "Did you mean weights='a1_in1k'?",
        ),
    ],
)
def test_unknown_names(name, message):
    for look in (describe, as_text, published):
        with pytest.raises(ConfigError) as error:
            look(name)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("resnet50", "Add one, as resnet50.tv_in1k."),
        ("resnet200", "resnet200 has none published."),
    ],
)
def test_weights_have_a_tag(name, fix):
    with pytest.raises(ConfigError) as error:
        published(name)
    assert str(error.value) == f"Weights are named variant.tag. Received: name={name!r}. {fix}"


# --- the README


def test_the_readme_shows_the_generated_table():
    """After a change: kresnet zoo list --markdown, between the two markers."""
    _, _, rest = README.read_text(encoding="utf-8").partition("<!-- kresnet zoo list -->\n")
    table, end, _ = rest.partition("\n<!-- end of kresnet zoo list -->")
    assert end
    assert table.strip() == as_markdown()


def test_the_markdown_has_a_row_for_each_variant():
    lines = as_markdown().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == list(VARIANTS)
    assert {line.count("|") for line in lines} == {7}
    assert "| `resnet50` | 25.56M | 4.09 | 224 | 18 | 81.2 `a1_in1k` at 288 px |" in lines
    assert "| `resnet200` | 64.67M | 15.01 | 224 | - | - |" in lines
    assert (
        "| `resnext101_32x32d` | 468.53M | 87.11 | 224 | 1 "
        "| 85.1 `fb_wsl_ig1b_ft_in1k` at 224 px, non-commercial |"
    ) in lines


# --- the commands


def test_list():
    done = run("list", "--params", "<30e6", "--top1", ">80", "--license", "apache-2.0")
    assert done.exit_code == 0
    entries = list_models(params="<30e6", top1=">80", license="Apache-2.0")
    assert done.output == as_table(entries) + "\n"
    assert run("list", "--markdown").output == as_markdown() + "\n"
    assert CliRunner().invoke(app, ["variants"]).output == run("list").output


def test_list_as_json():
    done = run("list", "resnet50.tv", "--sort", "top1", "--json", "--macs", "<5G")
    assert [entry["name"] for entry in json.loads(done.output)] == [
        "resnet50.tv2_in1k",
        "resnet50.tv_in1k",
    ]
    assert json.loads(done.output)[1] == {
        "name": "resnet50.tv_in1k",
        "variant": "resnet50",
        "tag": "tv_in1k",
        "params": 25557032,
        "macs": 4089184256,
        "data": "imagenet",
        "image_size": 224,
        "top1": 76.13,
        "top5": 92.862,
        "license": "BSD-3-Clause",
        "noncommercial": False,
    }
    assert json.loads(run("list", "nothing", "--json").output) == []


def test_an_empty_list_says_so():
    done = run("list", "nothing")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "kresnet: no model is like that.\n"


def test_show():
    assert run("show", "resnet50.a1_in1k").output == as_text("resnet50.a1_in1k") + "\n"
    shown = json.loads(run("show", "resnet50.a1_in1k", "--json").output)
    assert shown["weights"]["test_preprocessing"]["image_size"] == 288
    assert shown["weights"]["mirrors"][0].startswith("https://huggingface.co/timm/resnet50.a1_in1k")


def test_fetch_finds_what_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    paths = []
    for name in ("resnet18d.ra4_e3600_r224_in1k", "resnet34d.ra2_in1k"):
        paths.append(tmp_path / "weights" / f"{name}.safetensors")
        paths[-1].write_bytes(name.encode())
    done = run("fetch", *(path.stem for path in paths))
    assert done.stdout.split() == [str(path) for path in paths]
    done = run("fetch", paths[0].stem, "--json")
    assert json.loads(done.stdout) == [{"name": paths[0].stem, "path": str(paths[0])}]


def test_fetch_asks_for_consent(tmp_path, monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path))
    monkeypatch.delenv("KRESNET_ALLOW_NONCOMMERCIAL", raising=False)
    name = "resnet18.fb_ssl_yfcc100m_ft_in1k"
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / f"{name}.safetensors"
    path.write_bytes(b"weights")
    done = run("fetch", name)
    assert isinstance(done.exception, ConfigError)
    assert "license='CC-BY-NC-4.0'" in str(done.exception)
    assert run("fetch", name, "--allow-noncommercial").stdout.split() == [str(path)]
    monkeypatch.setenv("KRESNET_ALLOW_NONCOMMERCIAL", "1")
    assert run("fetch", name).stdout.split() == [str(path)]
    kept = path.with_name(f"{path.name}.sha256").read_text()
    assert kept.startswith(hashlib.sha256(b"weights").hexdigest())


def test_fetch_tells_a_wrong_name_before_it_fetches(tmp_path, monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path))
    done = run("fetch", "resnet50.tv_in1k", "resnet50")
    assert str(done.exception).startswith("Weights are named variant.tag.")
    assert list(tmp_path.iterdir()) == []


def test_every_command_and_option_has_a_help_text():
    group = typer.main.get_command(app).commands["zoo"]
    assert set(group.commands) == {"list", "show", "fetch"}
    for command in group.commands.values():
        assert command.help, command.name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{command.name} {parameter.name}"


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--markdown"], ["show", "resnet50.a1_in1k"], ["fetch", "x"]]
)
def test_the_commands_load_no_framework(arguments):
    program = (
        "import sys\n"
        f"sys.argv = ['kresnet', 'zoo', *{arguments!r}]\n"
        "from kresnet.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "kresnet" in loaded
    assert not loaded & {"keras", "tensorflow", "torch", "numpy", "h5py", "sklearn"}
