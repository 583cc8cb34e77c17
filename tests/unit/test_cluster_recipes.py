"""The files for clusters: read by the schemas of what reads them, their scripts run for real."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "recipes" / "cluster"
TEXT, COUNT, OPEN = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}


def fields(required=(), **properties):
    """The schema of an object that has these fields and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


POD = fields(["spec"], metadata=OPEN, spec=OPEN)  # Kubernetes' own schema is asked for these

# From kubeflow.org_tfjobs.yaml of the release 1.9 of github.com/kubeflow/trainer at ee38ae8.
TFJOB = fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "kubeflow.org/v1"},
    kind={"const": "TFJob"},
    metadata=OPEN,
    spec=fields(
        ["tfReplicaSpecs"],
        runPolicy=fields(
            activeDeadlineSeconds=COUNT,
            backoffLimit=COUNT,
            cleanPodPolicy={"enum": ["All", "Running", "None"]},
            ttlSecondsAfterFinished=COUNT,
        ),
        tfReplicaSpecs={
            "type": "object",
            "propertyNames": {"enum": ["Chief", "Master", "Worker", "PS", "Evaluator"]},
            "additionalProperties": fields(
                replicas=COUNT,
                restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
                template=POD,
            ),
        },
    ),
)

# From ray.io_rayjobs.yaml of github.com/ray-project/kuberay at feeaf72.
GROUP = {"rayStartParams": {"type": "object", "additionalProperties": TEXT}, "template": POD}
RAYJOB = fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=OPEN,
    spec=fields(
        entrypoint=TEXT,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=fields(
            ["headGroupSpec"],
            rayVersion=TEXT,
            headGroupSpec=fields(["template"], **GROUP),
            workerGroupSpecs={
                "type": "array",
                "items": fields(
                    ["groupName", "template"],
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    **GROUP,
                ),
            },
        ),
    ),
)


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def templates(node):
    """Every pod template in a document."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield node
        for value in node.values():
            yield from templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from templates(value)


@pytest.mark.parametrize(("name", "schema"), [("tfjob.yaml", TFJOB), ("rayjob.yaml", RAYJOB)])
def test_a_job_fits_the_schema_of_its_operator(name, schema):
    jsonschema = pytest.importorskip("jsonschema")
    (document,) = documents(name)
    jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("name", ["tfjob.yaml", "trainjob.yaml", "rayjob.yaml"])
def test_the_pods_of_a_job_fit_the_schema_of_kubernetes(name):
    validator = pytest.importorskip("kubernetes_validate")
    pods = list(templates(documents(name)))
    for pod in pods:
        spec = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **pod}
        validator.validate(spec, "1.31", strict=True)
    assert len(pods) == (2 if name == "rayjob.yaml" else 1)


def test_a_trainjob_and_its_runtime_fit_the_models_of_kubeflow():
    models = pytest.importorskip("kubeflow_trainer_api.models")
    kinds = {"TrainingRuntime", "TrainJob"}
    for document in documents("trainjob.yaml"):
        kinds.remove(document["kind"])
        model = getattr(models, f"TrainerV1alpha1{document['kind']}")
        # What a model does not know is not in what it gives back.
        assert model.from_dict(document).to_dict() == document
    assert not kinds


def test_a_trainjob_runs_on_the_runtime_that_comes_with_it():
    runtime, job = documents("trainjob.yaml")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    nodes = job["spec"]["trainer"]["numNodes"]
    said = {one["name"]: one["value"] for one in job["spec"]["trainer"]["env"]}
    assert said == {"JOB": job["metadata"]["name"], "NODES": str(nodes)}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for programs, first on PATH; kresnet tells what it was given."""

    def write(**scripts):
        for name, script in scripts.items():
            file = tmp_path / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
            file.chmod(0o755)

    write(kresnet='echo "$TF_CONFIG $*"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return write


def run(*command, **env):
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60)


def test_a_pod_of_a_trainjob_is_told_who_the_others_are(programs):
    trainer = documents("trainjob.yaml")[1]["spec"]["trainer"]
    env = {one["name"]: one["value"] for one in trainer["env"]}
    done = run(*trainer["command"], *trainer["args"], **env, JOB_COMPLETION_INDEX="2")
    config, _, arguments = done.stdout.partition(" train ")
    assert json.loads(config) == {
        "cluster": {"worker": [f"flowers-node-0-{k}.flowers:2222" for k in range(3)]},
        "task": {"type": "worker", "index": 2},
    }
    assert arguments.split()[:3] == ["/data/photos", "--name", "flowers"]


SRUN = 'shift; for k in 0 1; do SLURM_PROCID=$k "$@" || exit; done'


def slurm(*arguments, **env):
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    return run("bash", str(FOLDER / "train.sbatch"), *arguments, **told, **env)


def test_a_slurm_job_starts_a_worker_on_each_host(programs, tmp_path):
    programs(scontrol=f'echo "$*" >> {tmp_path}/asked; printf "node1\\nnode2\\n"', srun=SRUN)
    done = slurm("/shared/my photos", "flowers")
    assert done.returncode == 0, done.stderr
    for k, line in enumerate(done.stdout.splitlines()):
        config, _, arguments = line.partition(" train ")
        assert json.loads(config) == {
            "cluster": {"worker": ["node1:20007", "node2:20007"]},
            "task": {"type": "worker", "index": k},
        }
        assert arguments == "/shared/my photos --name flowers"
    assert (tmp_path / "asked").read_text() == "show hostnames node[1-2]\n"


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(5, "0", True), (5, "20", False), (2, "0", False)]
)
def test_a_slurm_job_queues_again_where_the_training_can_go_on(
    programs, tmp_path, code, restarts, again
):
    programs(scontrol=f'echo "$1" >> {tmp_path}/asked', srun=SRUN, kresnet=f"exit {code}")
    done = slurm("photos", "flowers", SLURM_RESTART_COUNT=restarts)
    assert done.returncode == code
    assert ("requeue" in (tmp_path / "asked").read_text()) == again


def test_a_slurm_job_needs_images_and_a_name(programs):
    assert "the folder of the images" in slurm().stderr
    assert "a name for the run" in slurm("photos").stderr


def test_a_ray_job_begins_a_study_or_goes_on_with_it(programs, tmp_path):
    entry = documents("rayjob.yaml")[0]["spec"]["entrypoint"].replace("/data", str(tmp_path))
    assert "tune photos --name flowers --ray auto" in run("sh", "-c", entry).stdout
    (tmp_path / "studies" / "flowers").mkdir(parents=True)
    (tmp_path / "studies" / "flowers" / "study.sqlite").touch()
    assert "tune --resume studies/flowers --ray auto" in run("sh", "-c", entry).stdout
