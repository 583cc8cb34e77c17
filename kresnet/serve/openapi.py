"""The OpenAPI document of the HTTP API; a test sends generated requests to hold it to its word."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

_Schema = dict[str, Any]

_BASE64: _Schema = {
    "type": "object",
    "properties": {"b64": {"type": "string", "format": "byte"}},
    "required": ["b64"],
    "additionalProperties": False,
}
_ANSWER: _Schema = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 1.001},
        "labels": {"type": "array", "items": {"type": "string"}},
        "scores": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1.001}},
        "ok": {"type": "boolean"},
        "abstain": {"type": "boolean"},
    },
    "required": ["label", "score", "labels", "scores"],
}
_REASONS = {
    400: "The request is wrong; the message says where.",
    401: "The bearer token is missing or wrong.",
    403: "The Host header names neither localhost nor an address.",
    404: "There is no such model or version.",
    408: "The body came too slowly.",
    413: "The body is longer than the server takes.",
    415: "The body is of another type.",
    503: "Too much is under way, or the server is stopping. Try again after Retry-After.",
    504: "The time for the request is up.",
}


def document(name: str, *, has_token: bool) -> _Schema:
    """Return the document.

    Args:
        name: Of the export; it stands in the paths.
        has_token: Whether the server asks for a token.
    """
    paths = {}
    for prefix, parameters in (
        (f"/v1/models/{name}", []),
        (f"/v1/models/{name}/versions/{{version}}", [_version_parameter()]),
    ):
        paths[f"{prefix}:predict"] = {"post": _operation(
            "Predict, as TensorFlow Serving does.", parameters, _predict_body(), _predictions()
        )}  # fmt: skip
        paths[f"{prefix}:classify"] = {"post": _operation(
            "Classify tf.train.Examples, as TensorFlow Serving does.",
            parameters, _json_body(_examples()), _object({"results": {"type": "array"}}),
        )}  # fmt: skip
        paths[prefix] = {"get": _operation(
            "State of the versions.", parameters, None,
            _object({"model_version_status": {"type": "array", "items": {"type": "object"}}}),
        )}  # fmt: skip
        paths[f"{prefix}/metadata"] = {"get": _operation(
            "Signatures.", parameters, None,
            _object({"model_spec": {"type": "object"}, "metadata": {"type": "object"}}),
        )}  # fmt: skip
    for prefix, parameters in (
        (f"/v2/models/{name}", []),
        (f"/v2/models/{name}/versions/{{version}}", [_version_parameter()]),
    ):
        paths[f"{prefix}/infer"] = {"post": _operation(
            "Infer, as KServe's protocol 2 says.", parameters, _json_body(_infer()),
            _object({"model_name": {"type": "string"}, "outputs": {"type": "array"}}),
        )}  # fmt: skip
        paths[f"{prefix}/ready"] = {"get": _operation(
            "Whether the model answers.", parameters, None,
            _object({"name": {"type": "string"}, "ready": {"type": "boolean"}}),
        )}  # fmt: skip
        paths[prefix] = {"get": _operation(
            "Inputs and outputs.", parameters, None,
            _object({"name": {"type": "string"}, "inputs": {"type": "array"}}),
        )}  # fmt: skip
    paths["/predict"] = {"post": _operation(
        "Answer image files.", [_top_parameter()], _upload_body(),
        {"type": "array", "items": _upload_answer()},
    )}  # fmt: skip
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2"):
        paths[path] = {"get": _open_operation(path)}
    paths["/metrics"] = {"get": _operation("Metrics for Prometheus.", [], None, None)}
    components = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"kresnet serves {name}",
            "version": version("kresnet"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        **({"components": components, "security": [{"token": []}]} if has_token else {}),
    }


def _operation(
    summary: str, parameters: list[_Schema], body: _Schema | None, answer: _Schema | None
) -> _Schema:
    codes = [400, 401, 403, 404, 408, 413, 415, 503, 504] if body else [400, 401, 403, 404, 503]
    content = (
        {"text/plain": {"schema": {"type": "string"}}}
        if answer is None
        else {"application/json": {"schema": answer}}
    )
    error = {"application/json": {"schema": _object({"error": {"type": "string"}})}}
    return {
        "summary": summary,
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": body} if body else {}),
        "responses": {
            "200": {"description": "The answer.", "content": content},
            **{str(code): {"description": _REASONS[code], "content": error} for code in codes},
        },
    }


def _open_operation(path: str) -> _Schema:
    content = {"application/json": {"schema": {"type": "object"}}}
    responses = {
        str(code): {"description": reason, "content": content}
        for code, reason in ((200, "Yes."), (403, _REASONS[403]), (503, "Not now."))
        if code != 503 or "ready" in path
    }
    return {"summary": "Health.", "security": [], "responses": responses}


def _version_parameter() -> _Schema:
    schema = {"type": "integer", "minimum": 0}
    return {"name": "version", "in": "path", "required": True, "schema": schema}


def _top_parameter() -> _Schema:
    schema = {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 5}
    return {"name": "top", "in": "query", "description": "Labels to answer.", "schema": schema}


def _object(properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json_body(schema: _Schema) -> _Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _predict_body() -> _Schema:
    row = {"type": "object", "properties": {"image_bytes": _BASE64}, "required": ["image_bytes"]}
    named = {"signature_name": {"enum": ["serving_bytes"]}}
    return _json_body(
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": named
                    | {"instances": {"type": "array", "items": row, "minItems": 1}},
                    "required": ["signature_name", "instances"],
                },
                {
                    "type": "object",
                    "properties": named
                    | {
                        "inputs": _object(
                            {"image_bytes": {"type": "array", "items": _BASE64, "minItems": 1}}
                        )
                    },
                    "required": ["signature_name", "inputs"],
                },
            ]
        }
    )


def _predictions() -> _Schema:
    return {
        "type": "object",
        "properties": {
            "predictions": {"type": "array", "items": _ANSWER},
            "outputs": {"type": "object"},
        },
        "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
    }


def _examples() -> _Schema:
    example = {"type": "object", "properties": {"image_bytes": _BASE64}}
    return {
        "type": "object",
        "properties": {
            "signature_name": {"enum": ["classify"]},
            "examples": {"type": "array", "items": example, "minItems": 1},
        },
        "required": ["signature_name", "examples"],
    }


def _infer() -> _Schema:
    tensor = {
        "type": "object",
        "properties": {
            "name": {"enum": ["image_bytes"]},
            "datatype": {"enum": ["BYTES"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {"type": "array", "items": {"type": "string"}},
            "parameters": {
                "type": "object",
                "properties": {"content_type": {"enum": ["base64", "str"]}},
            },
        },
        "required": ["name", "datatype", "shape", "data"],
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
        },
        "required": ["inputs"],
    }


def _upload_body() -> _Schema:
    image = {"type": "string", "format": "binary", "minLength": 1}
    form = {
        "type": "object",
        "properties": {"image": {"type": "array", "items": image, "minItems": 1}},
        "required": ["image"],
        "additionalProperties": False,
    }
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "image/jpeg": {"schema": image},
            "application/octet-stream": {"schema": image},
        },
    }


def _upload_answer() -> _Schema:
    kept = {name: _ANSWER["properties"][name] for name in ("label", "score", "ok", "abstain")}
    return _object(kept | {"top": {"type": "array", "items": _object({"label": {}, "score": {}})}})
