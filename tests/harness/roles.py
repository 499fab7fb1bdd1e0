"""Keys of a real S3 server that may do what a policy of docs/s3-providers.md says, and no more."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from harness.pages import DOCS, blocks_of, section
from harness.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PREFIX = "creditrobot"
_IN_FORCE_WITHIN_SECONDS = 20.0


class Role(StrEnum):
    """The headings below which the policies stand."""

    PUT_ONLY = "Backup, put only"
    FULL = "Backup, with rotation"
    PRUNE = "Prune"
    RESTORE = "Restore"
    TEST = "Test restores"
    RECOVER = "Recover"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one user of the server, and how to reach it with them."""

    server: S3Server
    bucket: str

    def client(self) -> S3Client:
        """A plain boto3 client with these keys."""
        return self.server.client()

    def store(self, **others: object) -> dict[str, object]:
        """The entry of a store in a configuration."""
        return {
            "url": f"s3://{self.bucket}/{PREFIX}",
            "endpoint_url": self.server.endpoint_url,
            "access_key_id": self.server.access_key_id,
            "secret_access_key": self.server.secret_access_key,
            "max_attempts": 1,
            **others,
        }


def policy_of(role: Role, bucket: str) -> dict[str, Any]:
    """The policy as the page has it, for `bucket`."""
    (text,) = blocks_of(section(DOCS / "s3-providers.md", f"### {role}"), "json")
    policy: dict[str, Any] = json.loads(text.replace(":::my-bucket", f":::{bucket}"))
    return policy


def keys_for(role: Role, server: S3Server, bucket: str) -> Keys:
    """Keys of a new user with that policy."""
    keys, name = _new_user(server, bucket)
    iam = _iam(server)
    arn = iam.create_policy(PolicyName=name, PolicyDocument=json.dumps(policy_of(role, bucket)))["Policy"]["Arn"]
    iam.attach_user_policy(UserName=name, PolicyArn=arn)
    _wait_until_in_force(keys)
    return keys


def keys_by_bucket_policy(role: Role, server: S3Server, bucket: str) -> Keys:
    """Keys of a new user who may do nothing but what the bucket's own policy, made of the same statements, says."""
    keys, name = _new_user(server, bucket)
    principal = {"AWS": _iam(server).get_user(UserName=name)["User"]["Arn"]}
    policy = policy_of(role, bucket)
    policy["Statement"] = [{**statement, "Principal": principal} for statement in policy["Statement"]]
    with closing(server.client()) as client:
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    _wait_until_in_force(keys)
    return keys


def _new_user(server: S3Server, bucket: str) -> tuple[Keys, str]:
    iam, name = _iam(server), f"user-{secrets.token_hex(6)}"
    iam.create_user(UserName=name)
    made = iam.create_access_key(UserName=name)["AccessKey"]
    return Keys(S3Server(server.endpoint_url, made["AccessKeyId"], made["SecretAccessKey"], server.pid), bucket), name


def _iam(server: S3Server) -> Any:
    return boto3.client(
        "iam",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


def _wait_until_in_force(keys: Keys) -> None:
    """Every role may list."""
    give_up_at = time.monotonic() + _IN_FORCE_WITHIN_SECONDS
    with closing(keys.client()) as client:
        while True:
            try:
                client.list_objects_v2(Bucket=keys.bucket, MaxKeys=1)
            except ClientError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.05)
            else:
                return
