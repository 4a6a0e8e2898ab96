// A source as it is entered in a form, and as it is stored.

import { clone, create } from "@bufbuild/protobuf";
import { BodyKind, type DeliveryIdRule, DeliveryIdRuleSchema, OnIdReuse, ReplayGuard, type Rule, RuleSchema, SignatureEncoding, type Source, SourceSchema, type Verification, VerificationSchema } from "./gen/weft/v1/catalog_pb";

export type Scheme = NonNullable<Verification["scheme"]["case"]>;

interface SchemeKind {
  scheme: Scheme;
  title: string;
  /** Who makes the secret; `undefined`: there is none. */
  secret?: "either" | "sender";
  hint?: string;
  /** Whether the time is signed. */
  timed?: boolean;
  /** Whether requests name the delivery id without a rule of the source. */
  hasId: boolean;
}

export const SCHEMES: SchemeKind[] = [
  { scheme: "standard", title: "Standard Webhooks", secret: "either", hint: "whsec_ and base64, or the sender's public key whpk_…", timed: true, hasId: true },
  { scheme: "github", title: "GitHub", secret: "either", hint: "any text; the same is entered at GitHub", hasId: true },
  { scheme: "stripe", title: "Stripe", secret: "sender", hint: "whsec_…, as Stripe shows it for the endpoint", timed: true, hasId: true },
  { scheme: "slack", title: "Slack", secret: "sender", hint: "the signing secret under Basic Information", timed: true, hasId: true },
  { scheme: "shopify", title: "Shopify", secret: "sender", hint: "the client secret of the app", hasId: true },
  { scheme: "hmac", title: "HMAC-SHA256", secret: "either", hint: "any text of 16 bytes or more", timed: true, hasId: false },
  { scheme: "apiKey", title: "API key", hasId: false },
  { scheme: "none", title: "none: unsigned", hasId: false },
];

export const kindOf = (scheme: Scheme | undefined) => SCHEMES.find((kind) => kind.scheme === (scheme ?? "none")) as SchemeKind;

export const schemeOf = (source: Source): Scheme => source.verification?.scheme.case ?? "none";

export function secretCount(source: Source): number | undefined {
  const value = source.verification?.scheme.value;
  return value && "secrets" in value ? value.secrets.length : undefined;
}

export function ruleText(rule?: Rule): string {
  switch (rule?.from.case) {
    case "pointer":
      return `pointer ${rule.from.value || "(whole body)"}`;
    case "header":
      return `header ${rule.from.value}`;
    case "fixed":
      return `always ${rule.from.value}`;
    default:
      return "";
  }
}

export function deliveryIdText(source: Source): string {
  const from = source.deliveryId?.from;
  if (from?.case === "header" || from?.case === "pointer") return `${from.case} ${from.value}`;
  if (from?.case === "digest") return "the digest of the body";
  if (from?.case === "none") return "none: each request is a new event";
  return "the scheme's";
}

export interface SourceDraft {
  name: string;
  scheme: Scheme;
  /** Seconds; empty: the default. */
  tolerance: string;
  header: string;
  prefix: string;
  base64: boolean;
  template: string;
  timestampHeader: string;
  idHeader: string;
  workflowFrom: "" | "pointer" | "header" | "fixed";
  workflow: string;
  typeFrom: "" | "pointer" | "header" | "fixed";
  type: string;
  idFrom: "" | "header" | "pointer" | "digest" | "none";
  id: string;
  data: string;
  anyBody: boolean;
  onIdReuse: OnIdReuse;
  replayGuard: ReplayGuard;
  keepHeaders: string;
  /** KiB; empty: the gateway's. */
  maxBody: string;
  /** Days; empty: as long as the event. */
  payloadDays: string;
}

const DAY_MS = 86_400_000;

export function draftOf(source: Source): SourceDraft {
  const scheme = source.verification?.scheme;
  const hmac = scheme?.case === "hmac" ? scheme.value : undefined;
  const tolerance = scheme?.value && "toleranceMs" in scheme.value ? scheme.value.toleranceMs : undefined;
  const ruleOf = (rule?: Rule) => ({ from: rule?.from.case ?? ("" as const), text: rule?.from.case ? rule.from.value : "" });
  const [workflow, type, id] = [ruleOf(source.workflow), ruleOf(source.type), source.deliveryId?.from];
  return {
    name: source.name,
    scheme: schemeOf(source),
    tolerance: tolerance === undefined ? "" : String(Number(tolerance) / 1000),
    header: hmac?.header ?? "",
    prefix: hmac?.prefix ?? "",
    base64: hmac?.encoding === SignatureEncoding.BASE64,
    template: hmac?.template ?? "",
    timestampHeader: hmac?.timestampHeader ?? "",
    idHeader: hmac?.idHeader ?? "",
    workflowFrom: workflow.from,
    workflow: workflow.text,
    typeFrom: type.from,
    type: type.text,
    idFrom: id?.case ?? "",
    id: id?.case === "header" || id?.case === "pointer" ? id.value : "",
    data: source.dataPointer,
    anyBody: source.body === BodyKind.ANY,
    onIdReuse: source.onIdReuse,
    replayGuard: source.replayGuard,
    keepHeaders: source.keepHeaders.join(" "),
    maxBody: source.maxBodyBytes ? String(Number(source.maxBodyBytes) / 1024) : "",
    payloadDays: source.payloadRetentionMs ? String(Number(source.payloadRetentionMs) / DAY_MS) : "",
  };
}

/** The scheme with what was entered; `secrets` are those of a new source, or of a scheme that replaces another. */
function verificationOf(draft: SourceDraft, secrets: string[]): Verification {
  const toleranceMs = draft.tolerance.trim() ? BigInt(Math.round(Number(draft.tolerance) * 1000)) : undefined;
  const make = (scheme: Verification["scheme"]) => create(VerificationSchema, { scheme } as Parameters<typeof create<typeof VerificationSchema>>[1]);
  const of = (value: object) => make({ case: draft.scheme, value } as Verification["scheme"]);
  switch (draft.scheme) {
    case "standard":
    case "stripe":
    case "slack":
      return of({ secrets, toleranceMs });
    case "github":
    case "shopify":
      return of({ secrets });
    case "hmac":
      return of({
        secrets,
        toleranceMs,
        header: draft.header.trim(),
        prefix: draft.prefix,
        encoding: draft.base64 ? SignatureEncoding.BASE64 : SignatureEncoding.HEX,
        template: draft.template.trim(),
        timestampHeader: draft.timestampHeader.trim(),
        idHeader: draft.idHeader.trim(),
      });
    default:
      return of({});
  }
}

/** The stored source with what was entered. Without a new secret the admin keeps the stored ones, where the scheme is the same. */
export function apply(source: Source, draft: SourceDraft, secret = ""): Source {
  const next = clone(SourceSchema, source);
  const before = source.verification?.scheme.value;
  const kept = before && "secrets" in before && schemeOf(source) === draft.scheme ? before.secrets : [];
  const rule = (from: SourceDraft["workflowFrom"], value: string) => (from ? create(RuleSchema, { from: { case: from, value: from === "fixed" ? value : value.trim() } }) : undefined);
  next.name = draft.name.trim();
  next.verification = verificationOf(draft, secret.trim() ? [secret.trim()] : kept);
  next.workflow = rule(draft.workflowFrom, draft.workflow);
  next.type = rule(draft.typeFrom, draft.type);
  next.deliveryId = deliveryId(draft);
  next.dataPointer = draft.data.trim();
  next.body = draft.anyBody ? BodyKind.ANY : BodyKind.JSON;
  next.onIdReuse = draft.onIdReuse;
  next.replayGuard = draft.replayGuard;
  next.keepHeaders = draft.keepHeaders.split(/[\s,]+/).filter(Boolean);
  next.maxBodyBytes = BigInt(Math.round(Number(draft.maxBody || 0) * 1024));
  next.payloadRetentionMs = BigInt(Math.round(Number(draft.payloadDays || 0) * DAY_MS));
  return next;
}

function deliveryId({ idFrom, id }: SourceDraft): DeliveryIdRule | undefined {
  if (idFrom === "header" || idFrom === "pointer") return create(DeliveryIdRuleSchema, { from: { case: idFrom, value: id.trim() } });
  if (idFrom === "digest" || idFrom === "none") return create(DeliveryIdRuleSchema, { from: { case: idFrom, value: true } });
  return undefined;
}

/** What the sender's side must be set to. */
export function settings(source: Source, gateway: string): [string, string][] {
  const url = `${gateway.replace(/\/+$/, "")}/api/v1/webhooks/${source.name}${source.workflow ? "" : "/{workflowId}"}`;
  const content: [string, string] = ["Content type", source.body === BodyKind.ANY ? "any" : "application/json"];
  switch (schemeOf(source)) {
    case "github":
      return [["Payload URL", url], content, ["Secret", "the source's secret"], ["SSL verification", "enabled"], ["Events", "those that you want; ping is accepted as well"]];
    case "stripe":
      return [["Endpoint URL", url], content, ["Signing secret", "Stripe shows it (whsec_…); it is the source's secret"], ["API version", "your account's"], ["Events", "those that you want"]];
    case "slack":
      return [["Request URL", url], content, ["Signing secret", "Slack shows it under Basic Information; it is the source's secret"], ["Event subscriptions", "on"], ["Bot events", "those that you want"]];
    case "shopify":
      return [["Delivery URL", url], ["Format", "JSON"], ["Client secret", "Shopify shows it; it is the source's secret"], ["API version", "your app's"], ["Topics", "those that you want"]];
    case "hmac": {
      const hmac = source.verification?.scheme.case === "hmac" ? source.verification.scheme.value : undefined;
      return [["URL", url], content, ["Header", hmac?.header ?? ""], ["Signature", `HMAC-SHA256 over ${hmac?.template || "{body}"}${hmac?.prefix ? `, after ${hmac.prefix}` : ""}`], ["Secret", "the source's secret"]];
    }
    case "apiKey":
      return [["URL", url], ["Method", "POST"], content, ["Header", "x-api-key, or Authorization: Bearer"], ["Key", "an API key with scope ingest"]];
    case "none":
      return [["URL", url], ["Method", "POST"], content, ["Signature", "none: anyone who reaches the gateway can send"], ["Secret", "none"]];
    default:
      return [["URL", url], ["Method", "POST"], content, ["Headers", "webhook-id, webhook-timestamp, webhook-signature"], ["Secret", "the source's secret (whsec_…)"]];
  }
}
