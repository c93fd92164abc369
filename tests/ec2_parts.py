"""What the tests of the EC2 provider share."""

from preemptd.notices import Notice
from preemptd.provider import Observation
from preemptd_providers.ec2 import Ec2, SpotWatch

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
ACTION = "GET /latest/meta-data/spot/instance-action"
TERMINATION_TIME = "GET /latest/meta-data/spot/termination-time"
INSTANCE_ID = "GET /latest/meta-data/instance-id"
TOKEN = "PUT /latest/api/token"


def watch_of(provider: Ec2) -> SpotWatch:
    watch, *_ = provider.watches()
    assert isinstance(watch, SpotWatch)
    return watch


def noticed(observation: Observation) -> Notice:
    assert observation.notice is not None, observation
    return observation.notice
