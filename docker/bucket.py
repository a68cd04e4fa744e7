"""Makes the bucket of the datasets, with versions of what is overwritten or deleted:

    python bucket.py NAME

Endpoint and keys are those of every AWS tool: AWS_ENDPOINT_URL, AWS_SHARED_CREDENTIALS_FILE.
FOCUSDPO_BUCKET_VERSIONING=off leaves versions out: then what is deleted is gone at once. A bucket
that is made here gets a rule that ends old versions after FOCUSDPO_BUCKET_KEEP_DAYS, and uploads
that nobody finished.
"""

from __future__ import annotations

import os
import sys

from botocore.exceptions import ClientError
from botocore.session import Session


def main(name: str, versioning: str, keep_days: int) -> None:
    """Makes the bucket unless it is there; a bucket of somebody else's is an error."""
    store = Session().create_client("s3", region_name=os.environ.get("AWS_REGION", "us-east-1"))
    try:
        store.head_bucket(Bucket=name)
        made = "is there"
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise SystemExit(f"bucket {name}: {error}") from error
        store.create_bucket(Bucket=name)
        rule = {
            "ID": "focusdpo",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "NoncurrentVersionExpiration": {"NoncurrentDays": keep_days},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
        }
        store.put_bucket_lifecycle_configuration(
            Bucket=name, LifecycleConfiguration={"Rules": [rule]}
        )
        made = "made"
    if versioning == "on":
        store.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    sys.stdout.write(f"bucket {name}: {made}, versioning {versioning}\n")


if __name__ == "__main__":
    main(
        sys.argv[1],
        os.environ.get("FOCUSDPO_BUCKET_VERSIONING", "on"),
        int(os.environ.get("FOCUSDPO_BUCKET_KEEP_DAYS", "30")),
    )
