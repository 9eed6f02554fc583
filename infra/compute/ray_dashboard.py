"""Speaking to a Ray cluster: its addresses, Ray's own client with an end to every request, nodes and what they have."""

import ast
import logging
import re
from collections.abc import Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

from infra.addresses import basic_authorization, is_http, is_loopback, split_login, without_secrets
from infra.errors import ComputeUnavailable, SettingsError
from infra.settings import Settings

SECONDS_TO_CONNECT, SECONDS_TO_ANSWER = 5.0, 30.0

GPU_TYPE = "accelerator_type:"
"""Before the name of a kind of GPU, of which each node that has one has 1 in Ray's books."""


class Refused(ComputeUnavailable):
    """The cluster answered that it does not know, or will not do."""


def check_addresses(settings: Settings, cluster_is_elsewhere: bool = False) -> None:
    """Raise `SettingsError` for services that the nodes of a cluster cannot reach.

    Services on loopback are reachable only for a cluster on this machine, which `cluster_is_elsewhere` denies.
    """
    store, tracking = settings.object_store_uri, settings.mlflow_tracking_uri
    if store.partition("://")[0] in ("file", "local"):
        raise SettingsError(
            f"--compute ray: OBJECT_STORE_URI is {store}, a folder of this machine, which no node can reach.\n"
            "Set it to a store that both reach, such as s3://bucket/prefix."
        )
    if not is_http(tracking):
        raise SettingsError(
            f"--compute ray: MLFLOW_TRACKING_URI is {without_secrets(tracking)}, a database that nodes cannot reach or "
            "must not know.\nSet it to an MLflow server that both reach (http:// or https://)."
        )
    if cluster_is_elsewhere:
        for name, uri in (("MLFLOW_TRACKING_URI", tracking), ("AWS_ENDPOINT_URL", settings.object_store_endpoint)):
            if uri and is_loopback(uri):
                raise SettingsError(
                    f"--compute ray: {name} is {without_secrets(uri)}, this machine alone, and the cluster's nodes are "
                    "elsewhere.\nSet it to an address that both reach."
                )


def own_addresses() -> set[str]:
    """The addresses of this machine."""
    return {address.address for found in psutil.net_if_addrs().values() for address in found}


def connect(jobs_url: str, token: Path | None = None) -> Any:
    """Ray's `JobSubmissionClient`, whose methods raise `ComputeUnavailable`; connects to nothing yet.

    `token` is the file with the cluster's token; without it Ray looks into the environment (RAY_AUTH_TOKEN_PATH).
    Raises `SettingsError` without Ray.
    """
    address, login = split_login(jobs_url)
    headers = {}
    if login:
        headers["Authorization"] = basic_authorization(login)
    if token:
        headers["Authorization"] = f"Bearer {token.read_text()}"
    return client_class()(address, headers=headers or None)


def client_class() -> Any:
    """Ray's client, its requests with deadlines; raises `SettingsError` without Ray."""
    try:
        from ray.dashboard.modules.job.sdk import JobSubmissionClient
        from ray.exceptions import AuthenticationError
    except ImportError as error:
        raise SettingsError(
            "--compute ray needs Ray, which is not installed here.\nInstall it: pip install '.[ray]', or build the "
            "environment from requirements.lock (make)."
        ) from error

    # Set to INFO on import, by name.
    for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _check_connection_and_version(self, *_: Any, **__: Any) -> None:
            """Nothing: the constructor calls it, and `check_version` says more."""

        def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
            try:
                return super()._do_request(method, endpoint, timeout=(SECONDS_TO_CONNECT, SECONDS_TO_ANSWER), **kwargs)
            except AuthenticationError as error:
                raise ComputeUnavailable(
                    f"The Ray cluster at {without_secrets(self._address)} refuses us: it wants a token, or another "
                    "one.\nSet RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token."
                ) from error
            except OSError as error:
                raise ComputeUnavailable(
                    f"The Ray cluster at {without_secrets(self._address)} does not answer ({type(error).__name__}).\n"
                    "Start it, or correct RAY_JOBS_URL; where its dashboard listens on loopback, as it should, open a\n"
                    "tunnel first: ray dashboard CLUSTER_FILE, or ssh -L 8265:127.0.0.1:8265 HEAD."
                ) from error

        def _raise_error(self, response: Any) -> None:
            said = response.text.strip().splitlines() or ["nothing"]
            raise Refused(f"The Ray cluster answered HTTP {response.status_code}: {said[-1][:300]}")

    return Client


def check_version(client: Any, shown: str) -> None:
    """Raise `ComputeUnavailable` unless the cluster, which is `shown` so, is there and runs the Ray that is here."""
    response = client._do_request("GET", "/api/version")
    try:
        there = response.json()["ray_version"]
    except (ValueError, KeyError) as error:
        raise ComputeUnavailable(f"What answers at {shown} is no Ray cluster.\nCorrect RAY_JOBS_URL.") from error
    if there != (here := version("ray")):
        raise ComputeUnavailable(
            f"The Ray cluster at {shown} runs Ray {there}, and here is Ray {here}.\n"
            "Both must be the same: install that version on one side."
        )


def _ask(client: Any, path: str) -> dict[str, Any]:
    """What the dashboard answers beside the Jobs API; empty where it does not."""
    try:
        return client._do_request("GET", path).json().get("data") or {}
    except (ComputeUnavailable, ValueError):
        return {}


def living_nodes(client: Any) -> list[dict[str, Any]]:
    """As the dashboard describes them, the head first; none where it does not answer."""
    found = (_ask(client, "/api/v0/nodes").get("result") or {}).get("result") or []
    return sorted((one for one in found if one.get("state") == "ALIVE"), key=lambda one: not one.get("is_head_node"))


def describe_nodes(client: Any) -> list[str]:
    """The living nodes of the cluster, a line each."""
    return [
        f"{'head' if node['is_head_node'] else 'node'} {node['node_ip']}  {resources(node['resources_total'])}"
        for node in living_nodes(client)
    ]


def scaling_state(client: Any) -> str:
    """What the autoscaler says, in a few words."""
    status = _ask(client, "/api/cluster_status").get("clusterStatus") or {}
    load, report = status.get("loadMetricsReport") or {}, status.get("autoscalerReport") or {}
    demand = [f"{count} x {resources(shape)}" for shape, count in load.get("resourceDemand") or []]
    active = sum((report.get("activeNodes") or {}).values()) + len(report.get("idleNodes") or {})
    coming = sum((report.get("pendingLaunches") or {}).values()) + len(report.get("pendingNodes") or [])
    failed = len(report.get("failedNodes") or [])
    return (
        f"pending demand {', '.join(demand) or 'none'}; nodes: {active} up, {coming} coming"
        f"{f', {failed} failed' if failed else ''}"
    )


def unsatisfiable(client: Any, asked: Mapping[str, float]) -> str | None:
    """The autoscaler's word that no type of node has what a job asks for."""
    wanted = {name: float(count) for name, count in asked.items() if count}
    # Not /api/v0/cluster_events, which answers with an error once a node has died.
    for event in chain.from_iterable((_ask(client, "/events").get("events") or {}).values()):
        message = str(event.get("message", ""))
        refused = re.search(r"No available node types can fulfill resource requests? (\{.*?\})", message)
        # Others' requests are among the events too.
        if refused and ast.literal_eval(refused[1]) == wanted:
            return message.removeprefix("Error: ")
    return None


def offers(client: Any) -> str:
    """What there is, and which types of nodes can come."""
    report = (_ask(client, "/api/cluster_status").get("clusterStatus") or {}).get("autoscalerReport") or {}
    types = (report.get("nodeAvailabilitySummary") or {}).get("nodeAvailabilities") or {}
    nodes = living_nodes(client)
    said = [f"a {'head' if one['is_head_node'] else 'node'} with {resources(one['resources_total'])}" for one in nodes]
    said += [f"nodes of the type {name}" for name in types]
    if not types and all(one["is_head_node"] for one in nodes):
        said.append("no other node now; the types are in the cluster's own file")
    return "; ".join(said)


def resources(shape: Mapping[str, float]) -> str:
    """Resources as people read them, without those that every node has by itself."""
    plain = {name: value for name, value in shape.items() if not name.startswith(("node:", "object_store", "memory"))}
    kinds = [name.removeprefix(GPU_TYPE) for name in sorted(plain) if name.startswith(GPU_TYPE)]
    counted = [f"{value:g} {name}" for name, value in sorted(plain.items()) if value and not name.startswith(GPU_TYPE)]
    return ", ".join(counted + [f"of the type {kind}" for kind in kinds]) or "nothing"


def first_line(error: object) -> str:
    """Of what was said, cut."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
