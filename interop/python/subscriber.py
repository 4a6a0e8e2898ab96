"""Reads events with nats-py and only the tail user's URL, and tries operations that this user must not have.

    subscriber.py TAIL_URL_FILE SUBJECT COUNT

Prints one line of JSON: the sequences by an ordered and by a pull consumer, then each refusal.
"""

import asyncio
import json
import pathlib
import sys

import nats
from nats.js.api import AckPolicy, ConsumerConfig

PATIENCE_SECONDS = 30


async def sequences(messages, count):
    found = []
    async for message in messages:
        found.append(int(message.headers["ce-sequence"]))
        if len(found) == count:
            return found


async def refusal(attempt):
    """The error of an operation, by its type and text; null when it succeeds."""
    try:
        await asyncio.wait_for(attempt, PATIENCE_SECONDS)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def main(path, subject, count):
    violations = []

    async def on_error(error):
        violations.append(str(error))

    connection = await nats.connect(pathlib.Path(path).read_text().strip(), error_cb=on_error)
    jetstream = connection.jetstream(timeout=5)
    ordered = await jetstream.subscribe(subject, stream="EVENTS", ordered_consumer=True)
    by_ordered = await asyncio.wait_for(sequences(ordered.messages, count), PATIENCE_SECONDS)
    no_acks = ConsumerConfig(ack_policy=AckPolicy.NONE)
    pull = await jetstream.pull_subscribe(subject, stream="EVENTS", config=no_acks)
    fetched = await pull.fetch(count, timeout=PATIENCE_SECONDS)
    result = {
        "ordered": by_ordered,
        "pull": [int(message.headers["ce-sequence"]) for message in fetched],
        "durable": await refusal(jetstream.subscribe(subject, stream="EVENTS", durable="mine", config=no_acks)),
        "acks": await refusal(jetstream.pull_subscribe(subject, stream="EVENTS")),
        "publish": await refusal(jetstream.publish(subject, b"{}")),
        "delete": await refusal(jetstream.delete_stream("EVENTS")),
        "purge": await refusal(jetstream.purge_stream("EVENTS")),
        "commands": await refusal(jetstream.subscribe(">", stream="COMMANDS", ordered_consumer=True)),
    }
    await connection.flush()
    print(json.dumps({**result, "violations": violations}))
    await connection.close()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
