// Dead letters: grouped, selected one by one or all that match, redriven, resolved, discarded.

import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { keepPreviousData, useInfiniteQuery, useQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useMemo, useState } from "react";
import { api } from "../api";
import { count, dateOf, parseTime, plural } from "../format";
import { type DeadLetter, type DeadLetterCount, DeadLetterField } from "../gen/weft/v1/dead_letter_service_pb";
import { startRedrive } from "../jobs";
import { eventPath, Link, to, useFilters, workflowPath } from "../router";
import { useSession } from "../session";
import { Action } from "../ui/action";
import { Cut, Dialog, Empty, Facts, Failed, FilterInput, Head, Id, Loading, Panel, Select, Status, Text, Time } from "../ui/basics";
import { type Column, List } from "../ui/list";
import { Payload } from "../ui/payload";
import { DeadLetterStatus } from "../gen/weft/v1/status_pb";
import { deadLetterReason, deadLetterStatus } from "../words";

const NAMES = ["subscription", "workflow", "type", "source", "reason", "status", "since", "until", "error", "open"] as const;
const REASONS = ["exhausted", "permanent", "transform_failed", "schema_invalid", "skipped", "expired"];
const STATUSES = ["open", "redriving", "redriven", "resolved", "discarded", "expired"];
const PAGE = 200;

type Verb = "redrive" | "resolve" | "discard";
const VERBS: Record<Verb, { title: string; text: string }> = {
  redrive: { title: "Redrive", text: "They are delivered again, in order, marked as replays. The mesh continues when this page is closed." },
  resolve: { title: "Resolve", text: "They are declared done: their receivers have what they need. They are not delivered." },
  discard: { title: "Discard", text: "They are given up and hidden. Nothing is erased." },
};

export function DeadLetters() {
  const { operator, may } = useSession();
  const queries = useQueryClient();
  const [filters, setFilters] = useFilters(NAMES);
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [asked, setAsked] = useState<{ verb: Verb; all: boolean }>();
  const { open, error: errorText, ...fields } = filters;
  const status = fields.status || "open";

  const filter = useMemo(() => {
    const [since, until] = [parseTime(fields.since), parseTime(fields.until)];
    return {
      subscription: fields.subscription,
      workflowId: fields.workflow,
      type: fields.type,
      source: fields.source,
      reason: deadLetterReason.of(fields.reason),
      since: since && timestampFromDate(since),
      until: until && timestampFromDate(until),
      statuses: (status === "all" ? STATUSES : [status]).map(deadLetterStatus.of),
    };
    // biome-ignore lint: the fields are texts
  }, [fields.subscription, fields.workflow, fields.type, fields.source, fields.reason, fields.since, fields.until, status]);
  const key = [fields.subscription, fields.workflow, fields.type, fields.source, fields.reason, fields.since, fields.until, status];

  const stats = useQuery({
    queryKey: ["dead-letter-stats", "groups", ...key],
    queryFn: () => api.deadLetters.deadLetterStats({ filter }),
    refetchInterval: 3000,
    placeholderData: keepPreviousData,
  });
  const errors = useQuery({
    queryKey: ["dead-letter-stats", "errors", ...key],
    queryFn: () => api.deadLetters.deadLetterStats({ filter, groupBy: [DeadLetterField.LAST_ERROR, DeadLetterField.REASON] }),
    refetchInterval: 5000,
    placeholderData: keepPreviousData,
  });
  const listed = useInfiniteQuery({
    queryKey: ["dead-letters", ...key],
    queryFn: ({ pageParam }) => api.deadLetters.listDeadLetters({ filter, pageSize: PAGE, pageToken: pageParam }),
    initialPageParam: "",
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: ({ state }) => ((state.data?.pages.length ?? 0) > 2 ? false : 3000),
    placeholderData: keepPreviousData,
  });
  const loaded = useMemo(() => listed.data?.pages.flatMap((page) => page.deadLetters) ?? [], [listed.data]);
  const rows = useMemo(() => (errorText ? loaded.filter((letter) => errorOf(letter) === errorText) : loaded), [loaded, errorText]);
  const total = stats.data?.counts.reduce((sum, each) => sum + each.count, 0n) ?? 0n;
  const canAct = may("operate") && (status === "open" || status === "all");

  const toggle = useCallback((letter: DeadLetter) => {
    setSelected((now) => {
      const next = new Set(now);
      if (!next.delete(letter.id)) next.add(letter.id);
      return next;
    });
  }, []);
  const allShown = rows.length > 0 && rows.every((letter) => selected.has(letter.id));

  const columns = useMemo<Column<DeadLetter>[]>(() => {
    const list: Column<DeadLetter>[] = [
      { title: "Dead-lettered", width: "128px", show: (letter) => <Time at={dateOf(letter.deadLetteredAt)} /> },
      { title: "Subscription", width: "minmax(88px, 0.8fr)", show: (letter) => <Cut>{letter.subscription}</Cut> },
      {
        title: "Workflow",
        width: "minmax(96px, 1fr)",
        show: (letter) => (
          <Link href={workflowPath(letter.workflowId)} className="truncate" title={letter.workflowId} tabIndex={-1}>
            <Text>{letter.workflowId}</Text>
          </Link>
        ),
      },
      { title: "No.", width: "40px", right: true, show: (letter) => count(letter.sequenceNumber) },
      { title: "Type", width: "minmax(90px, 0.8fr)", show: (letter) => <Cut>{letter.type}</Cut> },
      { title: "Reason", width: "116px", show: (letter) => <Status of={deadLetterReason.word(letter.reason)} tone="" /> },
      { title: "Status", width: "88px", show: (letter) => <Status of={deadLetterStatus.word(letter.status)} /> },
      { title: "Attempts", width: "60px", right: true, show: (letter) => count(letter.attempts) },
      { title: "Last error", width: "minmax(130px, 1.6fr)", show: (letter) => <Cut>{errorOf(letter)}</Cut> },
    ];
    if (canAct) {
      list.unshift({
        title: <span className="hidden">Selected</span>,
        width: "18px",
        show: (letter) => (
          <input
            type="checkbox"
            tabIndex={-1}
            aria-label={`Select ${letter.id}`}
            checked={selected.has(letter.id)}
            disabled={letter.status !== DeadLetterStatus.OPEN}
            onChange={() => toggle(letter)}
          />
        ),
      });
    }
    return list;
  }, [canAct, selected, toggle]);

  const set = (changes: Partial<Record<(typeof NAMES)[number], string>>) => {
    setSelected(new Set());
    setFilters(changes);
  };
  const act = async (reason: string, requestId: string) => {
    if (!asked) return;
    const what = asked.all ? { filter: { ...filter, statuses: [DeadLetterStatus.OPEN] } } : { ids: [...selected] };
    if (asked.verb === "redrive") startRedrive({ ...what, reason }, requestId, operator.operator);
    else if (asked.verb === "resolve") await api.deadLetters.resolveDeadLetters({ ...what, reason, requestId });
    else await api.deadLetters.discardDeadLetters({ ...what, reason, requestId });
    setSelected(new Set());
    await queries.invalidateQueries();
  };
  const counted = async (signal: AbortSignal) => {
    if (!asked) return "";
    if (!asked.all) return plural(selected.size, "dead letter");
    // A resolve that changes nothing answers with the number alone; a redrive's would name each.
    const dry = await api.deadLetters.resolveDeadLetters({ filter: { ...filter, statuses: [DeadLetterStatus.OPEN] }, dryRun: true, reason: "count" }, { signal });
    return plural(dry.selected, "dead letter");
  };

  return (
    <>
      <Head title="Dead letters" sub="Deliveries that were given up. Each keeps its payload until it is redriven, resolved, discarded, or expires." />
      <div className="filters">
        <Select label="Status" value={status} onChange={(value) => set({ status: value === "open" ? "" : value })} options={[...STATUSES.map((name) => [name, name[0]?.toUpperCase() + name.slice(1)] as const), ["all", "Every status"]]} />
        <FilterInput label="Subscription" value={fields.subscription} onChange={(subscription) => set({ subscription })} />
        <FilterInput label="Workflow" value={fields.workflow} onChange={(workflow) => set({ workflow })} />
        <FilterInput label="Type" value={fields.type} onChange={(type) => set({ type })} placeholder="Type, such as order.*" />
        <FilterInput label="Source" value={fields.source} onChange={(source) => set({ source })} />
        <Select label="Reason" value={fields.reason} onChange={(reason) => set({ reason })} options={[["", "Every reason"], ...REASONS.map((name) => [name, name.replaceAll("_", " ")] as const)]} />
        <FilterInput label="Since" value={fields.since} onChange={(since) => set({ since })} placeholder="Since: 1h or a time" />
        <FilterInput label="Until" value={fields.until} onChange={(until) => set({ until })} placeholder="Until" />
      </div>
      {(stats.error ?? listed.error) && <Failed error={stats.error ?? listed.error} retry={() => { stats.refetch(); listed.refetch(); }} />}
      {stats.data && errors.data && <Groups counts={stats.data.counts} errorCounts={errors.data.counts} chosen={errorText} set={set} />}
      <section className="panel" aria-label="Dead letters">
        <div className="bulk">
          <span className="tabular" data-testid="total">
            {stats.data ? plural(total, "dead letter") : "…"}
            {stats.data?.truncated && " of the newest 100,000"}
          </span>
          {canAct && total > 0n && (
            <>
              <label className="check">
                <input
                  type="checkbox"
                  checked={allShown}
                  aria-label="Select all that are loaded"
                  onChange={() => setSelected(new Set(allShown ? [] : rows.filter((letter) => letter.status === DeadLetterStatus.OPEN).map((letter) => letter.id)))}
                />
                {selected.size > 0 ? `${count(selected.size)} selected` : "Select"}
              </label>
              {(Object.keys(VERBS) as Verb[]).map((verb) => (
                <button key={verb} type="button" className={`small ${verb === "discard" ? "danger" : ""}`} disabled={selected.size === 0} onClick={() => setAsked({ verb, all: false })}>
                  {VERBS[verb].title}
                </button>
              ))}
              {!errorText && (
                <span className="inline">
                  <span className="dim">all that match:</span>
                  {(Object.keys(VERBS) as Verb[]).map((verb) => (
                    <button key={verb} type="button" className={`small ${verb === "discard" ? "danger" : ""}`} aria-label={`${VERBS[verb].title} all that match`} onClick={() => setAsked({ verb, all: true })}>
                      {VERBS[verb].title} all
                    </button>
                  ))}
                </span>
              )}
            </>
          )}
        </div>
        {!listed.data || ((!stats.data || !errors.data) && !stats.error && !errors.error) ? (
          <Loading of="dead letters" failed={listed.error !== null} />
        ) : rows.length === 0 ? (
          <Empty title={key.slice(0, 7).some(Boolean) || errorText ? "No dead letter matches" : status === "open" ? "No open dead letters" : "None"}>
            <p>An event appears here when a subscription has used up its attempts, or its receiver refused it for good.</p>
          </Empty>
        ) : (
          <List
            label="Dead letters"
            rows={rows}
            columns={columns}
            id={(letter) => letter.id}
            onOpen={(letter) => setFilters({ open: letter.id }, false)}
            selected={selected}
            onSelect={canAct ? toggle : undefined}
            onEnd={() => { if (listed.hasNextPage && !listed.isFetchingNextPage) listed.fetchNextPage(); }}
            minWidth={960}
            height={`min(max(320px, calc(100vh - 420px)), ${rows.length * 34 + 36}px)`}
          />
        )}
      </section>
      {open && <Letter id={open} onClose={() => setFilters({ open: "" })} canAct={canAct} onAct={(verb) => { setSelected(new Set([open])); setFilters({ open: "" }); setAsked({ verb, all: false }); }} />}
      {asked && (
        <Action title={`${VERBS[asked.verb].title} dead letters`} verb={VERBS[asked.verb].title} danger={asked.verb === "discard"} count={counted} act={act} onClose={() => setAsked(undefined)}>
          <p>{VERBS[asked.verb].text}</p>
        </Action>
      )}
    </>
  );
}

const errorOf = (letter: Pick<DeadLetter, "lastError" | "reason">) => letter.lastError || deadLetterReason.word(letter.reason).replaceAll("_", " ");

function Groups({ counts, errorCounts, chosen, set }: { counts: DeadLetterCount[]; errorCounts: DeadLetterCount[]; chosen: string; set: (changes: Record<string, string>) => void }) {
  const groups = useMemo(() => {
    const sums = new Map<string, { subscription: string; reason: string; count: bigint }>();
    for (const { subscription, reason, count: each } of counts) {
      const group = sums.get(`${subscription}\n${reason}`) ?? { subscription, reason: deadLetterReason.word(reason), count: 0n };
      group.count += each;
      sums.set(`${subscription}\n${reason}`, group);
    }
    return [...sums.values()].sort((one, other) => Number(other.count - one.count));
  }, [counts]);
  const errors = useMemo(() => {
    const sums = new Map<string, bigint>();
    for (const each of errorCounts) sums.set(errorOf(each), (sums.get(errorOf(each)) ?? 0n) + each.count);
    return [...sums].sort((one, other) => Number(other[1] - one[1])).slice(0, 8);
  }, [errorCounts]);
  if (groups.length === 0) return null;
  return (
    <div className="grid">
      <Panel title="By subscription and reason" className="six">
        <table>
          <tbody>
            {groups.slice(0, 8).map((group) => (
              <tr key={`${group.subscription}\n${group.reason}`}>
                <td>
                  <Link href={to("/dead-letters", { subscription: group.subscription, reason: group.reason })} className="truncate">
                    <Text>{group.subscription}</Text>
                  </Link>
                </td>
                <td>{group.reason.replaceAll("_", " ")}</td>
                <td className="num">{count(group.count)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Panel>
      <Panel title="By error" className="six">
        <table>
          <tbody>
            {errors.map(([error, sum]) => (
              <tr key={error}>
                <td style={{ maxWidth: 0, width: "90%" }}>
                  <button type="button" className="plain small light" style={{ maxWidth: "100%" }} aria-pressed={chosen === error} title={error} onClick={() => set({ error: chosen === error ? "" : error })}>
                    <span className="truncate">
                      <Text>{error}</Text>
                    </span>
                  </button>
                </td>
                <td className="num">{count(sum)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </Panel>
    </div>
  );
}

function Letter({ id, onClose, canAct, onAct }: { id: string; onClose: () => void; canAct: boolean; onAct: (verb: Verb) => void }) {
  const found = useQuery({ queryKey: ["dead-letter", id], queryFn: () => api.deadLetters.getDeadLetter({ id }), refetchInterval: 3000 });
  const letter = found.data?.deadLetter;
  return (
    <Dialog title="Dead letter" onClose={onClose}>
      {found.error && <Failed error={found.error} retry={found.refetch} />}
      {!letter && !found.error && <Loading of="the dead letter" />}
      {letter && (
        <>
          <Facts
            of={[
              ["Id", <Id key="i" value={letter.id} name="the id" />],
              ["Status", <Status key="s" of={deadLetterStatus.word(letter.status)} />],
              ["Event", <Link key="e" href={eventPath(letter.eventId)}><Text>{letter.type}</Text>, no. {count(letter.sequenceNumber)}</Link>],
              ["Workflow", <Link key="w" href={workflowPath(letter.workflowId)}><Text>{letter.workflowId}</Text></Link>],
              ["Reason", deadLetterReason.word(letter.reason).replaceAll("_", " ")],
              ["Last error", <Text key="l">{errorOf(letter)}</Text>],
              ["Attempts", `${count(letter.attempts)}${letter.lastStatus ? `, last answered ${letter.lastStatus}` : ""}`],
              ["First failed", <Time key="f" at={dateOf(letter.firstFailedAt)} />],
              ["Dead-lettered", <Time key="d" at={dateOf(letter.deadLetteredAt)} />],
              ...(letter.settledBy ? [["By", <Text key="b">{`${letter.settledBy}: ${letter.settledReason}`}</Text>] as [string, React.ReactNode]] : []),
              ...(letter.copyMissing ? [["Copy", <Text key="c">{letter.copyMissing}</Text>] as [string, React.ReactNode]] : []),
            ]}
          />
          {found.data?.event && <Payload bytes={found.data.event.data} contentType={found.data.event.dataContentType} />}
        </>
      )}
      <div className="buttons">
        {canAct && letter?.status === DeadLetterStatus.OPEN && (
          <>
            <button type="button" className="danger" onClick={() => onAct("discard")}>
              Discard
            </button>
            <button type="button" onClick={() => onAct("resolve")}>
              Resolve
            </button>
            <button type="button" className="primary" onClick={() => onAct("redrive")}>
              Redrive
            </button>
          </>
        )}
        <button type="button" onClick={onClose}>
          Close
        </button>
      </div>
    </Dialog>
  );
}
