"""What the failures of a store's libraries and servers mean, in words that say what to do, without anything secret."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.core import split_protocol

from infra.addresses import without_secrets
from infra.errors import ObjectStoreError, ObjectStoreUnreachable
from infra.proxies import through_proxy


def told(
    error: Exception, attempt: str, uri: str, endpoint: str | None = None, named_by: str = "OBJECT_STORE_URI"
) -> ObjectStoreError | None:
    """What happened when `attempt` was made on the place `uri`; None if neither a store nor a disk raised `error`.

    `endpoint` is the server, where it is known, and `named_by` what a person names the place with.
    """
    attempt = f"{without_secrets(uri)}: could not {attempt}"
    found = _s3_error(error, attempt, uri, endpoint, named_by)
    if found is None and isinstance(error, OSError):
        return _os_error(error, attempt, named_by)
    return found


def _os_error(error: OSError, attempt: str, named_by: str) -> ObjectStoreError:
    where = f" ({error.filename})" if error.filename else ""
    advice = {
        errno.ENOSPC: "The disk is full. Make room there",
        errno.EDQUOT: "The quota of this user is used up. Make room there",
        errno.EACCES: "This user may not do that. Correct the rights of the folder",
        errno.EPERM: "This user may not do that. Correct the rights of the folder",
        errno.EROFS: "The disk is mounted read-only. Mount it for writing",
    }.get(error.errno or 0, "Correct that")
    reason = error.strerror or type(error).__name__
    return ObjectStoreError(f"{attempt}: {reason}{where}.\n{advice}, or set {named_by} to another place.")


_KEYS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (or AWS_PROFILE)"
_REFUSALS = {
    "InvalidAccessKeyId": "the key id is not known there. Check AWS_ACCESS_KEY_ID, and that AWS_ENDPOINT_URL "
    "is the server that it belongs to.",
    "SignatureDoesNotMatch": "the secret does not fit the key id. Check AWS_SECRET_ACCESS_KEY.",
    "ExpiredToken": "the session has expired. Get new keys, and set AWS_SESSION_TOKEN with them.",
    "InvalidToken": "the session token is not valid. Check AWS_SESSION_TOKEN.",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's. Set it.",
}
_LOST_UPLOAD = {"NoSuchUpload", "InvalidPart"}
_PASSING = {"SlowDown", "RequestTimeout", "OperationAborted", "InternalError", "ServiceUnavailable", *_LOST_UPLOAD}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _s3_response(error: BaseException) -> dict[str, Any] | None:
    """The server's refusal in botocore's form, which s3fs hides behind an `OSError`."""
    return next((cause.response for cause in _causes(error) if hasattr(cause, "operation_name")), None)  # type: ignore[attr-defined]


def s3_code(error: BaseException) -> str | None:
    response = _s3_response(error)
    return None if response is None else str(response.get("Error", {}).get("Code"))


@contextmanager
def missing_is_none() -> Iterator[None]:
    """Let the block end where it meets an object that is not there; a bucket that is not there is an error."""
    try:
        yield
    except FileNotFoundError as error:
        if s3_code(error) == "NoSuchBucket":
            raise


def is_upload_lost(error: BaseException) -> bool:
    """True if the server lost an upload that was under way, or a part of it, as some do when they start again."""
    return s3_code(error) in _LOST_UPLOAD


def _s3_error(error: Exception, attempt: str, uri: str, endpoint: str | None, named_by: str) -> ObjectStoreError | None:
    """What happened in words of ours, without anything secret; None if it did not come from an S3 library."""
    at = without_secrets(endpoint) if endpoint else "the address in AWS_ENDPOINT_URL"
    code = s3_code(error)
    if code is not None:
        status = (_s3_response(error) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        attempt = f"{attempt}.\n{at} answered {code} (HTTP {status}): "
        bucket = split_protocol(uri)[1].partition("/")[0]
        if code in _REFUSALS:
            return ObjectStoreError(attempt + _REFUSALS[code])
        if code in _OTHER_REGION:
            return ObjectStoreError(f"{attempt}the bucket {bucket} is in another region. Set AWS_REGION to its own.")
        if status in (401, 403) or code == "AccessDenied":
            return ObjectStoreError(
                f"{attempt}not allowed in the bucket {bucket}.\nCheck {_KEYS}, and that\n"
                "the key may list the bucket, and read, write and delete objects."
            )
        if code == "NoSuchBucket":
            return ObjectStoreError(
                f"{attempt}there is no bucket {bucket}.\nCreate it, or correct {named_by} or AWS_ENDPOINT_URL."
            )
        if status == 507:
            return ObjectStoreError(f"{attempt}the store is full.")
        if code in _PASSING or status >= 500:
            return ObjectStoreUnreachable(f"{attempt}the server is in trouble. Run again later.")
        return ObjectStoreError(f"{attempt}it does not take this request.")
    cause = next((cause for cause in _causes(error) if type(cause).__module__.startswith("botocore")), None)
    if cause is None and not any(type(part).__module__.startswith("aiohttp") for part in _causes(error)):
        if isinstance(error, ValueError) and "endpoint" in str(error).lower():
            return ObjectStoreError(f"{attempt}: AWS_ENDPOINT_URL is not the address of a server (http://host:port).")
        return None
    kind = type(cause or error).__name__
    if "Credentials" in kind or "Profile" in kind or kind == "TokenRetrievalError":
        return ObjectStoreError(f"{attempt}: there are no complete keys for {at} ({kind}).\nSet {_KEYS}.")
    if kind == "NoRegionError":
        return ObjectStoreError(f"{attempt}: no region is set.\nSet AWS_REGION.")
    if kind in ("ParamValidationError", "InvalidRegionError", "UnsupportedS3ConfigurationError"):
        return ObjectStoreError(f"{attempt}: the request is not valid ({kind}).\nCheck {named_by} and AWS_REGION.")
    if any(isinstance(part, socket.gaierror) for part in _causes(error)):
        reason = "there is no host of that name"
    elif any(isinstance(part, ConnectionRefusedError) for part in _causes(error)):
        reason = "nothing listens there"
    elif "Timeout" in kind:
        reason = "it does not answer"
    else:
        reason = "the connection broke off"
    way = through_proxy(endpoint or "https://s3.amazonaws.com")
    return ObjectStoreUnreachable(
        f"{attempt}. {at}: {reason}{way} ({kind}).\nIs the server up, and AWS_ENDPOINT_URL its address?"
    )
