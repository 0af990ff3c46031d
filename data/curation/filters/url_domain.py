"""Sites whose pictures or captions are not wanted."""

import re
from typing import Any

import numpy as np
import pyarrow as pa

from data.curation import specs
from data.curation.filters.base import Verdict
from data.curation.filters.meta import field_values

# scheme (or none), user and password (to the last @, as browsers have it), then a name, or an address in brackets
_HOST = re.compile(r"(?:(?:[a-z][a-z0-9+.-]*:)?//)?+(?:[^/?#\\]*@)?(\[[^\]]*\]|[^/?#:@\\\s]+)", re.IGNORECASE)


class UrlDomain:
    """The host is none of the refused domains nor below one, case ignored; a pair without URL stays."""

    needs = frozenset({"meta"})

    def __init__(self, spec: specs.UrlDomain) -> None:
        self.spec = spec
        self._refused = frozenset(_clean(domain) for domain in spec.domains)

    def judge(self, rows: pa.Table) -> Verdict:
        """Value: the host."""
        hosts = [_host(value) for value in field_values(rows, self.spec.field)]
        keeps = np.array([host is None or not self._is_refused(host) for host in hosts], np.bool_)
        return Verdict(pa.array(hosts, pa.string()), keeps)

    def _is_refused(self, host: str) -> bool:
        while host:
            if host in self._refused:
                return True
            host = host.partition(".")[2]
        return False


def _host(url: Any) -> str | None:
    match = _HOST.match(url.strip()) if isinstance(url, str) else None
    return (_clean(match[1]) or None) if match else None


def _clean(domain: str) -> str:
    """Lower case, without the dots that end a full name or begin a pattern."""
    return domain.strip().lower().strip(".")
