"""A stand-in until the real module is there."""

from __future__ import annotations

from collections.abc import Mapping

from res2net_dense.findings import Findings
from res2net_dense.types import Source


def check_sources(sources: Mapping[str, Source], *, thorough: bool, workers: int) -> dict[str, Findings]:
    """All findings of each source."""
    found = {}
    for name, source in sources.items():
        found[name] = Findings()
        found[name].extend(source.findings)
        for index in range(len(source)):
            for finding in source.inspect(index, thorough=thorough):
                found[name].add(finding)
    return found
