"""Asks what generators made of the OpenAPI document: imports it, counts its operations, and speaks to the API
through it. Run with the name of a check, the document and the address of the API."""

import importlib
import inspect
import json
import pkgutil
import sys
import uuid


def operation_ids(path):
    """The ids of the document's operations."""
    with open(path, encoding="utf-8") as file:
        paths = json.load(file)["paths"]
    return {operation["operationId"] for item in paths.values() for operation in item.values()}


def import_all(package):
    """Every module of the package, by name."""
    root = importlib.import_module(package)
    names = [module.name for module in pkgutil.walk_packages(root.__path__, package + ".")]
    return {name: importlib.import_module(name) for name in names}


def same(found, expected):
    """Fails unless no operation was dropped and none was made up."""
    if found != expected:
        sys.exit(f"missing: {sorted(expected - found)}, too many: {sorted(found - expected)}")
    print(f"{len(found)} operations")


def openapi_python_client(document, url):
    modules = import_all("forebay_client")
    of_operations = {name: module for name, module in modules.items() if hasattr(module, "sync_detailed")}
    same({name.rsplit(".", 1)[1] for name in of_operations}, operation_ids(document))
    client = modules["forebay_client.client"].Client(base_url=url)
    body = modules["forebay_client.models"].IncrementBody(by=2)
    name = f"client-{uuid.uuid4()}"
    operation = {name.rsplit(".", 1)[1]: module for name, module in of_operations.items()}
    standing = operation["increment_counter"].sync(name, client=client, body=body, prefer="wait=10")
    counter = operation["get_counter"].sync(name, client=client)
    assert (standing.value, counter.value, counter.updated_at.year > 2000) == (2, 2, True), (standing, counter)


def openapi_generator(document, url):
    import_all("openapi_client")
    package = importlib.import_module("openapi_client")
    apis = {name: api for name, api in inspect.getmembers(package, inspect.isclass) if name.endswith("Api")}
    methods = {method for api in apis.values() for method in vars(api) if not method.startswith("_")}
    named = {method for method in methods if not method.endswith(("_with_http_info", "_without_preload_content"))}
    same(named, operation_ids(document))
    client = package.ApiClient(package.Configuration(host=url))
    name = f"generator-{uuid.uuid4()}"
    body = package.IncrementOrMany(package.IncrementBody(by=2))
    standing = apis["CountersApi"](client).increment_counter(name, prefer="wait=10", increment_or_many=body)
    counter = apis["CountersApi"](client).get_counter(name)
    assert (standing.value, counter.value, counter.updated_at.year > 2000) == (2, 2, True), (standing, counter)


def typescript_test(document, _url):
    """Prints a program that compiles only if the types know exactly the document's operations."""
    documented = " | ".join(json.dumps(name) for name in sorted(operation_ids(document)))
    print('import type { operations } from "./document.js";')
    print(f"type Documented = {documented};")
    print("type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false;")
    print("export const same: Same<keyof operations, Documented> = true;")


if __name__ == "__main__":
    {check.__name__: check for check in (openapi_python_client, openapi_generator, typescript_test)}[sys.argv[1]](
        *sys.argv[2:]
    )
