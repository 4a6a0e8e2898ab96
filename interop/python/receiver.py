"""Reads a delivery as JSON from standard input, verifies it with standardwebhooks, and parses it with the CloudEvents SDK.

    receiver.py SECRET < {"headers": {…}, "body": "<base64>"}

Prints one line of JSON: whether a changed body is refused, and the attributes and data of a CloudEvent.
"""

import base64
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from standardwebhooks import Webhook, WebhookVerificationError

delivery = json.load(sys.stdin)
headers, body = delivery["headers"], base64.b64decode(delivery["body"])
webhook = Webhook(sys.argv[1])
webhook.verify(body, headers)
try:
    webhook.verify(body.replace(b"1", b"2"), headers)
    refused = False
except WebhookVerificationError:
    refused = True
event = None
if "ce-id" in headers:
    parsed = from_http(HTTPMessage(headers=headers, body=body), JSONFormat(), CloudEvent)
    event = {
        "id": parsed.get_id(),
        "type": parsed.get_type(),
        "source": parsed.get_source(),
        "partitionkey": parsed.get_extension("partitionkey"),
        "data": parsed.get_data(),
    }
print(json.dumps({"refused": refused, "event": event}))
