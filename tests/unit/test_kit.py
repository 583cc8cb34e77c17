"""The files for other servers: each is read by the schema of what it is for."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from hypothesis import given
from hypothesis import strategies as st

from kresnet.errors import ConfigError, ExportError, ResourceError
from kresnet.export.contract import Contract
from kresnet.serve import kit
from kresnet.zoo import Preprocessing


def write_export(home, *versions, name=None, classes=("daisy", "rose")):
    """A folder that looks like an export from outside, with a megabyte of parameters."""
    for version in versions:
        directory = home / str(version)
        (directory / "variables").mkdir(parents=True)
        (directory / "saved_model.pb").touch()
        (directory / "variables" / "variables.data-00000-of-00001").write_bytes(bytes(1_000_000))
        Contract(
            name=name or home.name,
            variant="resnet50",
            classes=classes,
            preprocessing=Preprocessing(),
            versions={"tensorflow": "2.21.0"},
        ).save(directory)
    return home


@pytest.fixture
def flowers(tmp_path):
    return write_export(tmp_path / "saved_models" / "flowers", 2, 9, 10)


def documents(text):
    return list(yaml.safe_load_all(text))


# The fields of TensorFlow Serving's protos that the package tensorflow-serving-api leaves out, with
# their numbers, from servables/tensorflow/session_bundle_config.proto and
# config/monitoring_config.proto at 9d981c5.
_INT64, _BOOL = ".google.protobuf.Int64Value", ".google.protobuf.BoolValue"
_UNSHIPPED = {
    "BatchingParameters": {
        "max_batch_size": (1, _INT64),
        "batch_timeout_micros": (2, _INT64),
        "max_enqueued_batches": (3, _INT64),
        "num_batch_threads": (4, _INT64),
        "enable_large_batch_splitting": (8, _BOOL),
        "max_execution_batch_size": (9, _INT64),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, ".kresnet.test.PrometheusConfig")},
}


def unshipped(name):
    """A new message of one of the types in `_UNSHIPPED`."""
    from google.protobuf import wrappers_pb2

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="kresnet_test.proto",
        package="kresnet.test",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message, fields in _UNSHIPPED.items():
        added = file.message_type.add(name=message)
        for field_name, (number, kind) in fields.items():
            scalar = {"bool": field.TYPE_BOOL, "string": field.TYPE_STRING}.get(kind)
            added.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_OPTIONAL,
                type=scalar or field.TYPE_MESSAGE,
                type_name=None if scalar else kind,
            )
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"kresnet.test.{name}"))()


def model_server_config(text):
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    (model,) = text_format.Parse(text, config.ModelServerConfig()).model_config_list.config
    return model


def test_the_models_file_names_the_model_and_follows_its_newest_version(flowers):
    model = model_server_config(kit.kit(flowers)["models.config"])
    assert (model.name, model.base_path) == ("flowers", "/models/flowers")
    assert model.model_platform == "tensorflow"
    assert model.model_version_policy.latest.num_versions == 1


def test_a_version_that_is_named_is_pinned(flowers):
    texts = kit.kit(flowers / "9")
    policy = model_server_config(texts["models.config"]).model_version_policy
    assert list(policy.specific.versions) == [9]
    assert 'COPY ["9", "/models/flowers/9"]' in texts["Dockerfile"]


def test_versions_are_compared_as_numbers(flowers):
    assert 'COPY ["10", "/models/flowers/10"]' in kit.kit(flowers)["Dockerfile"]


def test_the_batching_file_has_the_cores_and_the_batch(flowers):
    texts = kit.kit(flowers, cpus=6, max_batch=24)
    batching = text_format.Parse(texts["batching.config"], unshipped("BatchingParameters"))
    assert batching.num_batch_threads.value == 6
    assert batching.max_enqueued_batches.value == 6
    assert batching.max_batch_size.value == 24
    assert batching.HasField("batch_timeout_micros")


def test_the_monitoring_file_turns_prometheus_on(flowers):
    text = kit.kit(flowers)["monitoring.config"]
    prometheus = text_format.Parse(text, unshipped("MonitoringConfig")).prometheus_config
    assert prometheus.enable
    assert prometheus.path == "/monitoring/prometheus/metrics"


def test_the_compose_file_fits_the_schema_of_compose(flowers):
    jsonschema = pytest.importorskip("jsonschema")
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas")
    (compose,) = documents(kit.kit(flowers)["docker-compose.yaml"])
    jsonschema.validate(compose, schemas.get_builtin_schema("vendor.compose-spec"))


def test_the_compose_file_is_locked_down(flowers):
    (compose,) = documents(kit.kit(flowers, cpus=3)["docker-compose.yaml"])
    service = compose["services"]["serving"]
    assert service["image"] == kit.IMAGE
    assert not kit.IMAGE.endswith(":latest")
    assert service["read_only"] is True
    assert service["user"] == "1000:1000"
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(volume["read_only"] for volume in service["volumes"])
    export = service["volumes"][0]
    assert (export["source"], export["target"]) == (str(flowers), "/models/flowers")
    assert service["deploy"]["resources"]["limits"]["cpus"] == "3"
    assert "--enable_profiler=false" in service["command"]
    assert "--tensorflow_intra_op_parallelism=3" in service["command"]


def test_every_flag_is_one_that_the_server_has(flowers):
    flags = {  # tensorflow_serving/model_servers/main.cc at 9d981c5
        "port", "rest_api_port", "model_config_file", "enable_batching", "enable_profiler",
        "batching_parameters_file", "monitoring_config_file", "file_system_poll_wait_seconds",
        "tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism",
    }  # fmt: skip
    texts = kit.kit(flowers)
    (compose,) = documents(texts["docker-compose.yaml"])
    (kserve,) = documents(texts["kserve.yaml"])
    pod = by_kind(texts)["Deployment"]["spec"]["template"]["spec"]
    for arguments in (
        compose["services"]["serving"]["command"],
        pod["containers"][0]["args"],
        kserve["spec"]["predictor"]["model"]["args"],
    ):
        assert {argument[2:].partition("=")[0] for argument in arguments} <= flags


def by_kind(texts):
    return {document["kind"]: document for document in documents(texts["kubernetes.yaml"])}


def test_the_manifests_fit_the_schema_of_kubernetes(flowers):
    validator = pytest.importorskip("kubernetes_validate")
    kinds = []
    for document in documents(kit.kit(flowers)["kubernetes.yaml"]):
        validator.validate(document, "1.31", strict=True)
        kinds.append(document["kind"])
    assert sorted(kinds) == [
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service",
    ]  # fmt: skip


def test_the_manifests_belong_together(flowers):
    texts = kit.kit(flowers)
    found = by_kind(texts)
    pod = found["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in found["Service"]["spec"]["ports"]} == ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["config"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    for name, text in found["ConfigMap"]["data"].items():
        assert text == texts[name]
        assert any(argument.endswith(f"=/etc/kresnet/{name}") for argument in container["args"])
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == found["Deployment"]["metadata"]["name"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "15"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > 15
    assert pod["spec"]["securityContext"]["runAsNonRoot"]


def test_kserve_gets_the_runtime_that_the_export_needs(flowers):
    (service,) = documents(kit.kit(flowers)["kserve.yaml"])
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "tensorflow", "version": "2"}
    assert model["protocolVersion"] == "v1"
    assert f"tensorflow/serving:{model['runtimeVersion']}" == kit.IMAGE
    assert model["storageUri"] == "pvc://kresnet-models/flowers"


@pytest.mark.parametrize(
    ("name", "model", "resource"),
    [
        ("flowers", "flowers", "flowers"),
        ("Five Flowers", "Five-Flowers", "five-flowers"),
        ("v1.2_b", "v1.2_b", "v1-2-b"),
        ("2024", "2024", "m-2024"),
        ("null", "null", "null"),
        ("花", "model", "m"),
        ('a"b\\c', "a-b-c", "a-b-c"),
        ("..", "model", "m"),
        ("x" * 90, "x" * 90, "x" * 50),
    ],
)
def test_names_fit_where_they_are_used(name, model, resource):
    assert kit.model_name(name) == model
    assert kit.resource_name(name) == resource


@given(
    name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1,
                 max_size=40).filter(lambda name: name not in (".", "..") and name.strip()),
    classes=st.lists(st.text(max_size=20), min_size=2, max_size=6),
)  # fmt: skip
def test_any_name_gives_files_that_mean_the_same(tmp_path_factory, name, classes):
    home = tmp_path_factory.mktemp("any") / "saved $HOME ${X} 'q\" #é" / name
    write_export(home, 1, name=name, classes=tuple(classes))
    texts = kit.kit(home)
    model = model_server_config(texts["models.config"])
    assert model.name == kit.model_name(name)
    (compose,) = documents(texts["docker-compose.yaml"])
    assert compose["name"] == kit.resource_name(name)
    source = compose["services"]["serving"]["volumes"][0]["source"]
    assert source.replace("$$", "$") == str(home)
    assert "$" not in source.replace("$$", "")
    assert len(documents(texts["kubernetes.yaml"])) == 5
    assert documents(texts["kserve.yaml"])[0]["metadata"]["name"] == kit.resource_name(name)
    instructions = [
        line.split()[0] for line in texts["Dockerfile"].splitlines() if not line.startswith("#")
    ]
    assert instructions == ["FROM", "COPY", "ENV", "USER"]


def test_more_parameters_and_cores_need_more_memory():
    reserve, allow = kit.memory_mib(100 * 2**20, 224, cpus=4, max_batch=32)
    assert reserve % 128 == allow % 128 == 0
    assert allow > reserve >= 512 + 2 * 100 * 1.3 + 4 * 32 * 9
    assert kit.memory_mib(300 * 2**20, 224, cpus=4, max_batch=32)[0] >= reserve + 512
    assert (
        kit.memory_mib(100 * 2**20, 448, cpus=4, max_batch=32)[0] >= reserve + 3 * 4 * 32 * 9 - 128
    )


def test_the_files_are_written_or_printed(flowers, tmp_path, capsys):
    written = kit.write_kit(flowers, tmp_path / "new" / "kit")
    assert [path.name for path in written] == list(kit.FILES)
    assert all(path.read_text(encoding="utf-8") for path in written)
    assert kit.write_kit(flowers, "-") == []
    printed = capsys.readouterr().out
    for path in written:
        assert f"# ---------- {path.name}\n{path.read_text(encoding='utf-8')}" in printed


def test_mistakes_are_said_in_one_line(flowers, tmp_path):
    with pytest.raises(ExportError, match=r"folder NAME or NAME/VERSION.*Received: '.*nowhere'"):
        kit.kit(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"`cpus` must be at least 1. Received: cpus=0."):
        kit.kit(flowers, cpus=0)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"must be writable. Received: .*file"):
        kit.write_kit(flowers, tmp_path / "file")


@pytest.mark.parametrize(("status", "code"), [(200, 0), (404, 1)])
def test_the_health_check_of_compose_tells_a_loaded_model(flowers, status, code):
    paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"not": " 200 "}).encode())

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (compose,) = documents(kit.kit(flowers)["docker-compose.yaml"])
        _, *command = compose["services"]["serving"]["healthcheck"]["test"]
        command[-1] = command[-1].replace("8501", str(server.server_port))
        done = subprocess.run(command, timeout=30)
        server.shutdown()
        thread.join()
    assert done.returncode == code
    assert paths == ["/v1/models/flowers/metadata"]
