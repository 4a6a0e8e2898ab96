"""Receives the mesh's alerts and sends each as a mail. Answers 200 once the SMTP server has taken it."""

import json
import os
import smtplib
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(os.environ["ALERTS_SECRET"])
HOST = os.environ["SMTP_HOST"]
PORT = int(os.environ.get("SMTP_PORT", "587"))
USER, PASSWORD = os.environ.get("SMTP_USER"), os.environ.get("SMTP_PASSWORD")
BODY_BYTES_MAX = 1 << 20


def mail(event):
    data = event["data"]
    message = EmailMessage()
    message["From"], message["To"] = os.environ["MAIL_FROM"], os.environ["MAIL_TO"]
    message["Subject"] = " ".join(f"[weft] {data['state']}: {data['summary']}".split())
    # The same event again is the same mail: most servers deliver one.
    message["Message-ID"] = f"<{event['eventId']}@weft>"
    message.set_content(json.dumps(event, indent=2))
    with smtplib.SMTP(HOST, PORT, timeout=10) as server:
        if PORT != 25:
            server.starttls()
        if USER:
            server.login(USER, PASSWORD)
        server.send_message(message)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("content-length", "0"))
        if length > BODY_BYTES_MAX:
            return self.answer(413)
        body = self.rfile.read(length)
        try:
            event = WEBHOOK.verify(body, dict(self.headers.items()))
        except WebhookVerificationError:
            return self.answer(401)
        try:
            mail(event)
        except (OSError, smtplib.SMTPException) as error:
            self.log_error("%s", error)
            # The mesh tries again.
            return self.answer(503)
        return self.answer(200)

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8025), Handler).serve_forever()
