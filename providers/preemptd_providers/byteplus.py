"""BytePlus and Volcengine ECS: spot instances are reclaimed five minutes after a time appears in the metadata."""

from datetime import datetime

from preemptd_providers._deadline_text import rfc3339
from preemptd_providers._termination_time import TerminationTimeProvider


class BytePlus(TerminationTimeProvider):
    name = "byteplus"
    endpoint = "PREEMPTD_BYTEPLUS_ENDPOINT"
    default_base = "http://100.96.0.96"
    signal_path = "/latest/spot_instance_termination_time"
    identity_path = "/latest/instance_id"
    notice_seconds = 300.0

    @staticmethod
    def parse(text: str) -> datetime | None:
        return rfc3339(text) or rfc3339(text.replace(" ", "T") + "Z")  # its pages say: a time in UTC
