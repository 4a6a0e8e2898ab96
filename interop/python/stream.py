"""Makes a stream in the account of users' streams with nats-py, and reads what a subscription stores in it.

    stream.py APP_URL_FILE STREAM SUBJECT COUNT

Prints "created", then one line of JSON: the messages.
"""

import asyncio
import json
import pathlib
import sys

import nats

PATIENCE_SECONDS = 60


async def main(path, stream, subject, count):
    connection = await nats.connect(pathlib.Path(path).read_text().strip())
    jetstream = connection.jetstream(timeout=5)
    await jetstream.add_stream(name=stream, subjects=[subject], max_bytes=10_000_000)
    print("created", flush=True)
    consumer = await jetstream.subscribe(subject, stream=stream, ordered_consumer=True)
    found = []
    for _ in range(count):
        message = await consumer.next_msg(timeout=PATIENCE_SECONDS)
        found.append({"subject": message.subject, "data": json.loads(message.data), "headers": message.headers})
    print(json.dumps(found), flush=True)
    await connection.close()


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
