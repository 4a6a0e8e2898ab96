"""Calls every method of an admin or a gateway with grpcio, by reflection alone: no generated code, no .proto file.

    reflected.py HOST:PORT KEY

Prints a line of JSON: the methods, and what is wrong with any answer. An answer is right when it is OK, or a refusal with a
`google.rpc.ErrorInfo`; without a key it is UNAUTHENTICATED.
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PATIENCE_SECONDS = 20
# A stream that follows the log has no end.
STREAM_SECONDS = 2
OPEN = ("grpc.health.", "grpc.reflection.")
FAULTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED)
ERROR_INFO = b"type.googleapis.com/google.rpc.ErrorInfo"


def caller(channel, service, method):
    """The method as a function of metadata that returns its first answer, if it has one."""
    message = message_factory.GetMessageClass
    serialize, parse = message(method.input_type).SerializeToString, message(method.output_type).FromString
    path, empty = f"/{service}/{method.name}", message(method.input_type)()
    streams = method.server_streaming
    if method.client_streaming:
        open_stream = (channel.stream_stream if streams else channel.stream_unary)(path, serialize, parse)

        def stub(request, **options):
            return open_stream(iter([request]), **options)
    else:
        stub = (channel.unary_stream if streams else channel.unary_unary)(path, serialize, parse)

    def call(metadata):
        if not streams:
            return stub(empty, metadata=metadata, timeout=PATIENCE_SECONDS)
        return next(iter(stub(empty, metadata=metadata, timeout=STREAM_SECONDS)), None)

    return call


def problem(call, metadata, expected=None):
    """What is wrong with the answer; None if nothing is."""
    try:
        call(metadata)
        return None if expected is None else f"OK instead of {expected}"
    except grpc.RpcError as error:
        code = error.code()
        if code == grpc.StatusCode.DEADLINE_EXCEEDED and expected is None:
            return None
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        if ERROR_INFO not in details:
            return f"{code.name} without ErrorInfo: {error.details()}"
        if code in FAULTS or (expected is not None and code != expected):
            return f"{code.name}: {error.details()}"
        return None


def main(address, key):
    found, wrong = [], []
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        for service in sorted(database.get_services()):
            if service.startswith(OPEN):
                continue
            for method in pool.FindServiceByName(service).methods:
                name, call = f"{service}/{method.name}", caller(channel, service, method)
                found.append(name)
                for metadata, expected in (
                    ((), grpc.StatusCode.UNAUTHENTICATED),
                    ((("x-api-key", key),), None),
                ):
                    answer = problem(call, metadata, expected)
                    if answer:
                        wrong.append(f"{name}: {answer}")
    print(json.dumps({"methods": found, "wrong": wrong}), flush=True)


main(sys.argv[1], sys.argv[2])
