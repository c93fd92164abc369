"""The platforms whose notice can be rehearsed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Cloud(NamedTuple):
    grace: float
    """Seconds that the platform gives."""
    endpoint: str
    """The variable that leads its provider to another server."""
    takes_url: bool = True
    """False: the variable holds HOST:PORT."""


CLOUDS: Mapping[str, Cloud] = MappingProxyType(
    {
        "ec2": Cloud(120.0, "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
        "gce": Cloud(30.0, "GCE_METADATA_HOST", takes_url=False),
        "azure": Cloud(30.0, "PREEMPTD_AZURE_ENDPOINT"),
        "alibaba": Cloud(300.0, "PREEMPTD_ALIBABA_ENDPOINT"),
        "tencent": Cloud(120.0, "PREEMPTD_TENCENT_ENDPOINT"),
        "byteplus": Cloud(300.0, "PREEMPTD_BYTEPLUS_ENDPOINT"),
    }
)
