"""The page of the service: what is served, how it stands, and a canvas to draw on where the model takes an image."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from infra.service.network import GATHERED_ROWS, Network
from infra.service.served import Served, Standing

_PAGE = Template((Path(__file__).with_name("page.html")).read_text(encoding="utf-8"))


def page(standing: Standing, requests: Mapping[str, int]) -> tuple[str, str]:
    """The HTML, and the policy by which a browser asks nobody but the service, and runs this script alone."""
    served = standing.served
    text = _PAGE.substitute(
        title=escape(f"{served.name}, version {served.version}" if served else "No version is served yet"),
        rows=_table(_rows(standing)),
        requests=_table((name, escape(f"{count:,}")) for name, count in sorted(requests.items())),
        model=json.dumps(_drawing(served.network) if served else None),
    )
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return text, f"default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "".join(f"<tr><td>{escape(name)}<td>{value}" for name, value in rows)


def _rows(standing: Standing) -> Iterator[tuple[str, str]]:
    """Names, and what is to be said of them, as HTML."""
    for version, reason in standing.refused.items():
        yield f"version {version} stays out", f'<span class="wrong">{escape(reason)}</span>'
    if standing.away:
        yield "MLflow is away", f'<span class="wrong">{escape(standing.away)}</span>'
    if served := standing.served:
        yield "since", f"{served.since:%Y-%m-%d %H:%M:%S} UTC"
        for name in ("test_accuracy", "objective_metric", "objective", "dataset"):
            if name in served.tags:
                yield name.replace("_", " "), escape(served.tags[name])
        yield "run", _link(served, "run", served.run_id)
        yield "version", _link(served, "version", str(served.version))
        yield "weights", escape(served.network.weights_sha256)
        yield "takes", ", ".join(escape(f"{tensor.name}: {tensor}") for tensor in served.network.contract.inputs)
        yield "answers", _how(served.network)


def _link(served: Served, what: str, text: str) -> str:
    address = served.links.get(what)
    return f'<a href="{escape(address)}">{escape(text)}</a>' if address else escape(text)


def _how(network: Network) -> str:
    one, many = network.seconds
    measured = f"a row takes {1000 * one:.2f} ms, {GATHERED_ROWS} together {1000 * many:.2f} ms"
    if network.is_quick:
        return f"each request by itself, at once: {measured}"
    return f"{'requests that wait, together' if network.gathers else 'each request by itself'}: {measured}"


def _drawing(network: Network) -> dict[str, Any] | None:
    """How a drawing becomes a row; None if the model takes no image, or gives no class."""
    contract = network.contract
    if len(contract.inputs) > 1 or len(contract.outputs) > 1 or len(contract.outputs[0].shape) != 1:
        return None
    height, width, *channels = (*contract.inputs[0].shape, None)[:3] if len(contract.inputs[0].shape) > 1 else (0, 0)
    if len(contract.inputs[0].shape) > 3 or not height or not width or min(height, width) < 8:
        return None
    factor = 1 / 255 if contract.score_scale else 1
    return {"height": height, "width": width, "channels": channels[0] or 0, "factor": factor}
