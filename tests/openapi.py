"""Holds requests and responses against an OpenAPI 3.0 file."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml


class Specification:
    """One OpenAPI file; `check_*` return a sentence for each violation."""

    def __init__(self, path: Path) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._document = yaml.load(path.read_text(), Loader=loader)
        self._base = self._document["servers"][0]["url"]
        self._routes = [
            (re.compile(re.sub(r"\{[^}]+\}", "[^/]+", self._base + template)), operations)
            for template, operations in self._document["paths"].items()
        ]
        # `/commits/{id}` matches no slash, so at most one template of a length fits; fixed words win.
        self._routes.sort(key=lambda route: route[0].pattern.count("[^/]+"))
        self._validator = cache(self._make_validator)

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """What the file says of a request line; None when it knows no such route."""
        for pattern, operations in self._routes:
            if pattern.fullmatch(path) and method.lower() in operations:
                shared = operations.get("parameters", [])
                found = dict(operations[method.lower()])
                found["parameters"] = [self._follow(p) for p in [*shared, *found.get("parameters", [])]]
                return found
        return None

    def check_request(
        self, operation: dict[str, Any], query: dict[str, list[str]], content_type: str, body: bytes
    ) -> list[str]:
        known = {p["name"]: p for p in operation["parameters"] if p["in"] == "query"}
        faults = [f"unknown query parameter {name!r}" for name in query if name not in known]
        for name, parameter in known.items():
            if name not in query:
                faults += [f"query parameter {name!r} is missing"] if parameter.get("required") else []
                continue
            for text in query[name]:
                faults += self._check_text(parameter, text)
        wanted = operation.get("requestBody", {})
        if "application/json" in wanted.get("content", {}):
            if not body:
                faults += ["the body is missing"] if wanted.get("required") else []
            else:
                faults += self._check_json(wanted["content"]["application/json"]["schema"], body)
        elif body and content_type not in wanted.get("content", {}):
            faults.append(f"content type {content_type!r} is not allowed")
        return faults

    def check_response(
        self, operation: dict[str, Any], status: int, content_type: str, body: bytes
    ) -> list[str]:
        responses = {str(key): value for key, value in operation["responses"].items()}
        if str(status) not in responses and "default" not in responses:
            return [f"status {status} is not in the file"]
        content = self._follow(responses.get(str(status), responses.get("default"))).get("content", {})
        if not body:
            return [f"status {status} needs a body"] if "application/json" in content else []
        if not content:
            return []  # the file says nothing of a body
        if content_type not in content:
            return [f"content type {content_type!r} of status {status} is not in the file"]
        if content_type == "application/json":
            return self._check_json(content[content_type]["schema"], body)
        return []

    def _check_text(self, parameter: dict[str, Any], text: str) -> list[str]:
        schema = self._follow(parameter["schema"])
        value: Any = text
        try:
            if schema.get("type") == "integer":
                value = int(text)
            elif schema.get("type") == "boolean":
                value = {"true": True, "false": False}[text.lower()]
        except (ValueError, KeyError):
            return [f"query parameter {parameter['name']!r} is {text!r}"]
        schema = schema["items"] if schema.get("type") == "array" else schema
        return self._violations(schema, value)

    def _check_json(self, schema: dict[str, Any], body: bytes) -> list[str]:
        try:
            return self._violations(schema, json.loads(body))
        except ValueError as error:
            return [f"not JSON: {error}"]

    def _violations(self, schema: dict[str, Any], value: Any) -> list[str]:
        validator = self._validator(json.dumps(schema, sort_keys=True))
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]

    def _make_validator(self, schema: str) -> jsonschema.Draft7Validator:
        whole = {"allOf": [json.loads(schema)], "components": self._document["components"]}
        return jsonschema.Draft7Validator(whole)

    def _follow(self, value: Any) -> Any:
        while "$ref" in value:
            place: Any = self._document
            for name in value["$ref"].removeprefix("#/").split("/"):
                place = place[name]
            value = place
        return value
