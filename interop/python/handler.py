"""Implements weft.v1.EventHandler with grpcio, from the protos of this repository.

    handler.py PROTO_FOLDER COUNT

Prints the port, then one line of JSON: the deliveries. The first call of each event is refused with UNAVAILABLE, and of a call with
several events only the first is taken.
"""

import json
import sys
import tempfile
import threading
from concurrent import futures
from importlib import import_module

import grpc
from grpc_tools import protoc

PROTOS = ["weft/v1/event.proto", "weft/v1/event_handler.proto"]


def generate(protos):
    """Compiles the protos into a temporary folder and imports them."""
    folder = tempfile.mkdtemp()
    includes = [f"-I{protos}", f"-I{import_module('importlib.resources').files('grpc_tools') / '_proto'}"]
    if protoc.main(["protoc", *includes, f"--python_out={folder}", f"--grpc_python_out={folder}", *PROTOS]) != 0:
        raise SystemExit("the protos do not compile")
    sys.path.insert(0, folder)
    return import_module("weft.v1.event_handler_pb2"), import_module("weft.v1.event_handler_pb2_grpc")


def main(protos, count):
    messages, services = generate(protos)
    enough = threading.Event()
    refused, handled = set(), []

    class Handler(services.EventHandlerServicer):
        def Handle(self, request, context):
            first = request.deliveries[0]
            if first.event.event_id not in refused:
                refused.add(first.event.event_id)
                context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
            handled.append({
                "subscription": request.subscription,
                "workflow": first.event.workflow_id,
                "sequence": first.event.sequence_number,
                "type": first.event.type,
                "data": json.loads(first.event.data),
                "attempt": first.attempt,
                "epoch": first.epoch,
                "previous": first.lane_previous_event_id,
                "id": first.event.event_id,
                "deadline": context.time_remaining(),
            })
            if len(handled) == count:
                enough.set()
            return messages.HandleResponse(taken=1)

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    services.add_EventHandlerServicer_to_server(Handler(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    enough.wait()
    print(json.dumps(handled), flush=True)
    server.stop(grace=5).wait()


main(sys.argv[1], int(sys.argv[2]))
