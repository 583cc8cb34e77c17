"""Thousands of mutated requests, and requests that the OpenAPI document allows."""

import json

import numpy as np
import pytest
import serving

httpx = pytest.importorskip("httpx")
pytest.importorskip("psutil")
pytest.importorskip("tensorflow_serving.apis")

import fuzzing  # noqa: E402 - after the check that what it needs is there


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("exports") / "photos"
    serving.write_export(home / "1")
    with serving.running(home, "--max-body-mb", 1, "--max-batch", 8) as server:
        yield server


@pytest.fixture(scope="module")
def images():
    return serving.photos(np.random.default_rng(8), 8)


@pytest.mark.parametrize("count", [200, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_mutated_requests_find_no_fault_and_no_leak(server, images, count):
    campaign = fuzzing.Campaign("photos", images, seed=count)
    counts, wrong, memory = fuzzing.run(server, campaign, count)
    assert not wrong
    assert sum(counts.values()) == count
    assert min(counts["http 200"], counts["http 400"], counts["grpc OK"]) > count // 50
    assert counts["grpc INVALID_ARGUMENT"] > count // 50
    assert not [line for line in server.log if line["level"] == "error"]
    if count >= 100_000:
        middle = memory[len(memory) // 2]
        assert memory[-1] < middle * 1.03 + 20e6  # what the second half adds
    answer = httpx.post(f"{server.url}/v1/models/photos:predict", json=serving.row_body(images))
    assert [row["ok"] for row in answer.json()["predictions"]] == [True] * 8


def test_the_campaign_can_see_a_fault(server, images):
    """A mutation that always made a refused body would test little; so would one that made none."""
    campaign = fuzzing.Campaign("photos", images)
    bodies = [campaign.request(number) for number in range(400)]
    assert len({body for *_, body in bodies}) > 350
    assert {protocol for protocol, *_ in bodies} == {"http", "grpc"}
    assert bodies == [campaign.request(number) for number in range(400)]
    assert 404 in fuzzing.ALLOWED_HTTP
    assert 500 not in fuzzing.ALLOWED_HTTP


def test_the_openapi_document_is_true(server):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    document = httpx.get(f"{server.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    wanted = [
        *(not_a_server_error, checks.status_code_conformance, checks.content_type_conformance),
        *(checks.response_schema_conformance, checks.response_headers_conformance),
    ]
    codes = set()
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=6,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def conforms(case):
            response = case.call(base_url=server.url)
            codes.add(response.status_code)
            case.validate_response(response, checks=wanted)

        conforms()
    assert {200, 400} <= codes
    names = {path.rsplit("/", 1)[-1] for path in document["paths"]}
    assert {"photos:predict", "infer", "predict", "metrics", "readyz"} <= names
    json.dumps(document)
