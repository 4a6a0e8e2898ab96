// Secrets that are made here. They are random and never stored by the console.

import { base64Encode } from "@bufbuild/protobuf/wire";

const SECRET_BYTES = 32;

/** A shared secret of Standard Webhooks. */
export const newSecret = () => `whsec_${base64Encode(crypto.getRandomValues(new Uint8Array(SECRET_BYTES)))}`;
